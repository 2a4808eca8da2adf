"""The head of `mgmrn` on cached maps, written out plainly.

Nothing is folded: distances of all pixels to all centres are one B×K×R×H×W tensor, and every image has its own
queries. Parameters have the names of `mgmrn.model.network.MgMRN`. B images, C channels, H W grid, N tokens, D width, R
region width, K regions, S attributes, L word-vector length, U seen classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mgmrn.config import LEVELS, MgMRNConfig

Parameters = Mapping[str, Tensor]


def below(parameters: Parameters, prefix: str) -> dict[str, Tensor]:
    """Parameters of a module, by their names within it."""
    return {name.removeprefix(prefix): x for name, x in parameters.items() if name.startswith(prefix)}


def head_forward(
    parameters: Parameters, maps: Mapping[str, Float[Tensor, "B C H W"]], config: MgMRNConfig
) -> dict[str, Float[Tensor, "B S"]]:
    features, region_tokens = {}, {}
    for level, x in maps.items():
        own = below(parameters, f"levels.{level}.")
        x = F.conv2d(x, own["stem.weight"]) if config.granularity.stem == "project" else x
        if config.regions.mode == "released":
            x = grouped_as_released(own, x)
        if config.regions.mode in ("regions", "tokens"):
            assignment, descriptors = mined(own, x)
            if config.regions.mode == "tokens":
                region_tokens[level] = F.linear(descriptors, own["region_tokens.linear.weight"])
            else:
                scattered = (assignment[:, :, None] * descriptors[:, :, :, None, None]).sum(dim=1)  # B R H W
                x = x + F.conv2d(scattered, own["regions.scatter.weight"][:, :, None, None])
        features[level] = granularity(own, x, LEVELS.index(config.levels[-1]) - LEVELS.index(level), config)
    vectors = {}
    for level, x in features.items():
        tokens = [x.flatten(2).transpose(1, 2)]
        attention = below(parameters, f"refinement.attention.{level}.")
        for group in sorted({name.split(".")[0] for name in attention}):
            sources = torch.cat([features[source] for source in group.split("_")], dim=1)
            sources = sources.detach() if config.refinement.detach else sources
            tokens.append(sca(below(attention, f"{group}."), sources).flatten(2).transpose(1, 2))
        tokens += [region_tokens[level]] if level in region_tokens else []
        own, words = below(parameters, f"decoders.{level}."), parameters["word_vectors"]
        fixed = config.decoder.attention_width**0.5 if config.decoder.temperature == "sqrt" else 1.0
        vectors[level] = decoded(own, torch.cat(tokens, dim=1), words, fixed)
    return vectors


def grouped_as_released(own: Parameters, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
    """Mean over k of q_k ⊙ x with q_k(p) = softmax_k(−‖x_p − c_k‖² / β_k)."""
    centres = own["regions.centres"]
    products = F.conv2d(x, centres[:, :, None, None])
    distance = x.square().sum(dim=1, keepdim=True) - 2 * products + centres.square().sum(dim=1)[:, None, None]
    assignment = (-distance / torch.sigmoid(own["regions.smoothing"])[:, None, None]).softmax(dim=1)
    return (assignment[:, :, None] * x[:, None]).mean(dim=1)


def mined(own: Parameters, x: Float[Tensor, "B D H W"]) -> tuple[Float[Tensor, "B K H W"], Float[Tensor, "B K R"]]:
    """Assignment q and descriptors z."""
    reduced = F.conv2d(x, own["regions.reduce.weight"]) if "regions.reduce.weight" in own else x
    pixels = F.normalize(reduced, dim=1)[:, None]  # B 1 R H W
    centres = F.normalize(own["regions.centres"], dim=1)[None, :, :, None, None]
    temperature = own["regions.log_temperature"].exp()[:, None, None]
    assignment = (-(pixels - centres).square().sum(dim=2) / temperature).softmax(dim=1)
    mass = assignment.sum(dim=(2, 3)).clamp_min(1e-5)[:, :, None]
    mean = (assignment[:, :, None] * pixels).sum(dim=(3, 4)) / mass
    return assignment, F.normalize((mean - centres[..., 0, 0]) / (temperature / 2).sqrt()[..., 0], dim=2)


def granularity(
    own: Parameters, x: Float[Tensor, "B D H W"], reductions: int, config: MgMRNConfig
) -> Float[Tensor, "B D h w"]:
    """Blocks of convolution, norm and ReLU, with halvings before, in or after them."""
    reduce, groups = config.granularity.reduce, config.granularity.group_norm_groups
    for block in range(max(1, reductions)):
        halves = block < reductions
        x = halved(x) if halves and reduce == "before" else x
        x = F.conv2d(x, own[f"blocks.{block}.conv.weight"], stride=1 + (halves and reduce == "strided"), padding=1)
        x = F.relu(F.group_norm(x, groups, own[f"blocks.{block}.norm.weight"], own[f"blocks.{block}.norm.bias"]))
        x = halved(x) if halves and reduce == "after" else x
    return x


def halved(x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D h w"]:
    """Half the grid, rounded up."""
    size = [(side + 1) // 2 for side in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def sca(own: Parameters, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """u ⊙ σ(MLP(mean u)) ⊙ σ(Conv3×3 u), u = Conv1×1 x."""
    u = F.conv2d(x, own["conv.weight"], own["conv.bias"])
    hidden = F.relu(F.linear(u.mean(dim=(2, 3)), own["channel_gate.0.weight"], own["channel_gate.0.bias"]))
    channel = torch.sigmoid(F.linear(hidden, own["channel_gate.2.weight"], own["channel_gate.2.bias"]))
    spatial = torch.sigmoid(F.conv2d(u, own["spatial_gate.weight"], own["spatial_gate.bias"], padding=1))
    return u * channel[:, :, None, None] * spatial


def decoded(
    own: Parameters, tokens: Float[Tensor, "B N D"], words: Float[Tensor, "S L"], fixed_temperature: float
) -> Float[Tensor, "B S"]:
    """v_s = ⟨W_o(A V)_s, e_s⟩ with A = softmax_N(Q Kᵀ / τ)."""
    query = F.linear(words.expand(len(tokens), -1, -1), own["query.weight"], own["query.bias"])
    key = F.linear(tokens, own["key.weight"], own["key.bias"])
    value = F.linear(tokens, own["value.weight"], own["value.bias"])
    learned = own["log_temperature"].exp() if "log_temperature" in own else 1.0
    attention = (query @ key.transpose(1, 2) / fixed_temperature / learned).softmax(dim=2)
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
    def __init__(self, state: Parameters, config: MgMRNConfig) -> None:
        super().__init__()
        self._names = [name for name in state if name != "word_vectors"]
        self._weights = nn.ParameterList(nn.Parameter(state[name].detach().clone()) for name in self._names)
        self.register_buffer("words", state["word_vectors"].clone())
        self._config = config

    def named(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._weights, strict=True)) | {"word_vectors": self.words}

    def forward(self, maps: Mapping[str, Float[Tensor, "B C H W"]]) -> dict[str, Float[Tensor, "B S"]]:
        chosen = {level: maps[level].float().contiguous() for level in self._config.levels}
        return head_forward(self.named(), chosen, self._config)
