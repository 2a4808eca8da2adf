"""Our head (region mining, no refinement, attribute attention) and its training on cached maps, written out plainly.

Nothing folded, no format of memory chosen: every distance of every pixel to every centre as one B×K×R×H×W tensor, queries per image,
attention and readout as the equations say. Parameters bear the names of `mgmrn.model.network.MgMRN`, so that it loads its state dict.
B images, C channels, H W grid, N tokens, D width, R region width, K regions, S attributes, U seen classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def head_forward(
    parameters: Mapping[str, Tensor],
    maps: Mapping[str, Float[Tensor, "B C H W"]],
    *,
    reductions: Mapping[str, int],
    groups: int,
) -> dict[str, Float[Tensor, "B S"]]:
    """Attribute vectors of every level of a head that mines `regions`, convolves and then halves, and refines nothing."""
    vectors = {}
    for level, x in maps.items():
        own = {name.removeprefix(f"levels.{level}."): value for name, value in parameters.items()}
        x = F.conv2d(x, own["stem.weight"])
        x = x + described(own, x)
        for block in range(max(1, reductions[level])):
            x = F.conv2d(x, own[f"blocks.{block}.conv.weight"], padding=1)
            x = F.relu(F.group_norm(x, groups, own[f"blocks.{block}.norm.weight"], own[f"blocks.{block}.norm.bias"]))
            if block < reductions[level]:
                size = [(side + 1) // 2 for side in x.shape[-2:]]
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        decoder = {name.removeprefix(f"decoders.{level}."): value for name, value in parameters.items()}
        vectors[level] = decoded(decoder, x.flatten(2).transpose(1, 2), parameters["word_vectors"])
    return vectors


def described(own: Mapping[str, Tensor], x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
    """W Σ_k q_k(p) z_k for every pixel."""
    reduced = F.conv2d(x, own["regions.reduce.weight"]) if "regions.reduce.weight" in own else x
    pixels = F.normalize(reduced, dim=1)[:, None]  # B 1 R H W
    centres = F.normalize(own["regions.centres"], dim=1)[None, :, :, None, None]
    temperature = own["regions.log_temperature"].exp()[:, None, None]
    assignment = (-(pixels - centres).square().sum(dim=2) / temperature).softmax(dim=1)[:, :, None]  # B K 1 H W
    mass = assignment.sum(dim=(3, 4)).clamp_min(1e-5)
    mean = (assignment * pixels).sum(dim=(3, 4)) / mass
    descriptors = F.normalize((mean - centres[..., 0, 0]) / (temperature / 2).sqrt()[..., 0], dim=2)  # B K R
    scattered = (assignment * descriptors[:, :, :, None, None]).sum(dim=1)  # B R H W
    return F.conv2d(scattered, own["regions.scatter.weight"][:, :, None, None])


def decoded(
    own: Mapping[str, Tensor], tokens: Float[Tensor, "B N D"], words: Float[Tensor, "S L"]
) -> Float[Tensor, "B S"]:
    """v_s = ⟨W_o(A V)_s, e_s⟩ with A = softmax_N(Q Kᵀ)."""
    query = F.linear(words.expand(len(tokens), -1, -1), own["query.weight"], own["query.bias"])
    key = F.linear(tokens, own["key.weight"], own["key.bias"])
    value = F.linear(tokens, own["value.weight"], own["value.bias"])
    attention = (query @ key.transpose(1, 2)).softmax(dim=2)
    found = F.linear(attention @ value, own["output.weight"], own["output.bias"])
    return (found * own["attributes"]).sum(dim=2)


def head_loss(
    vectors: Mapping[str, Float[Tensor, "B S"]],
    targets: Int[Tensor, " B"],
    class_attributes: Float[Tensor, "U S"],
    *,
    scale: float,
    regression: float,
) -> Float[Tensor, ""]:
    """Σ over levels of cross-entropy and λ · summed squared difference of unit vectors."""
    classes = F.normalize(class_attributes, dim=1)
    total = torch.zeros((), device=targets.device)
    for found in vectors.values():
        unit = F.normalize(found, dim=1)
        total = total + F.cross_entropy(scale * unit @ classes.T, targets)
        total = total + regression * (unit - classes[targets]).square().sum(dim=1).mean()
    return total


class PlainHead(nn.Module):
    """The head as a module that can be trained."""

    def __init__(
        self, state: Mapping[str, Tensor], levels: Sequence[str], reductions: Mapping[str, int], groups: int
    ) -> None:
        super().__init__()
        self._names = [name for name in state if name != "word_vectors"]
        self._weights = nn.ParameterList(nn.Parameter(state[name].detach().clone()) for name in self._names)
        self.register_buffer("words", state["word_vectors"].clone())
        self._levels, self._reductions, self._groups = tuple(levels), dict(reductions), groups

    def named(self) -> dict[str, Tensor]:
        """Weights under our names."""
        return dict(zip(self._names, self._weights, strict=True)) | {"word_vectors": self.words}

    def forward(self, maps: Mapping[str, Float[Tensor, "B C H W"]]) -> dict[str, Float[Tensor, "B S"]]:
        chosen = {level: maps[level].float().contiguous() for level in self._levels}
        return head_forward(self.named(), chosen, reductions=self._reductions, groups=self._groups)
