"""Explanations of a prediction: attention of each level, evidence at each token, and contributions to a class's score.

B images, N tokens, D width, S attributes, L word-vector length, K regions, n cells of a side, U classes.

    A_s  = softmax_n(Q_s · K_n / τ)                    attention of attribute s
    r_sn = ⟨V_n, W_oᵀ e_s⟩                             evidence of token n for it
    v_s  = Σ_n A_sn r_sn + ⟨b_o, e_s⟩                  its strength on the level: `AttributeDecoder` without folding
    score of class u = scale · Σ_l Σ_s v̂_ls â_us       one contribution per level and attribute
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mgmrn.config import Level, MgMRNConfig
from mgmrn.localisation import Cells, halved, on_input, stage_cells
from mgmrn.model.backbone import halvings
from mgmrn.model.decoder import AttributeDecoder
from mgmrn.model.network import MgMRN


def read(
    decoder: AttributeDecoder, tokens: Float[Tensor, "B N D"], word_vectors: Float[Tensor, "S L"]
) -> tuple[Float[Tensor, "B S N"], Float[Tensor, "B S"]]:
    """Attention A and attribute vector v: the decoder's equation term by term, from the same parameters."""
    logits = decoder.query(word_vectors) @ decoder.key(tokens).mT / decoder.fixed_temperature
    if decoder.log_temperature is not None:
        logits = logits / decoder.log_temperature.exp()
    attention = logits.softmax(dim=2)
    evidence = decoder.attributes @ decoder.output.weight @ decoder.value(tokens).mT
    return attention, (attention * evidence).sum(dim=2) + decoder.attributes @ decoder.output.bias


@dataclass(frozen=True)
class CellMap:
    """Values of every cell of a square map."""

    values: Float[Tensor, "B _ n n"]
    cells: Cells


@dataclass(frozen=True)
class LevelView:
    """Attention and regions of one level for a batch."""

    attributes: Float[Tensor, "B S"]
    attention: tuple[CellMap, ...]
    """Attention to the level's own pixels, to each map that refines it, and to its regions; the sum of all is one."""
    regions: CellMap | None
    """Assignment of pixels to regions; sums to one over K."""
    used: dict[Level, CellMap]
    """Attention of the level's pixels to the regions of each neighbour that refines them (`regions`); the sum over all is one."""

    def attention_on_input(self, image: int, attributes: Sequence[int], size: int) -> Float[Tensor, "chosen size size"]:
        """Attention of some attributes over an image's pixels; each sums to one."""
        chosen = list(attributes)
        return torch.stack([on_input(one.values[image, chosen], one.cells, size) for one in self.attention]).sum(dim=0)


@torch.inference_mode()
def look(
    head: MgMRN, config: MgMRNConfig, maps: Mapping[Level, Float[Tensor, "B C h w"]], size: int
) -> dict[Level, LevelView]:
    """The view of every level on the maps of pictures of size×size; `config` is that of the head."""
    return {level: _view(head, config, maps, size, level) for level in config.levels}


def _view(
    head: MgMRN, config: MgMRNConfig, maps: Mapping[Level, Float[Tensor, "B C h w"]], size: int, level: Level
) -> LevelView:
    outputs = head.outputs(maps, level)
    own = outputs[level]
    tokens = head.tokens(level, outputs)
    to_tokens, attributes = read(head.decoders[level], tokens, head.word_vectors)  # type: ignore[arg-type]
    pixels = _level_cells(config, level, maps[level].shape[-1], size)
    # Concatenated levels are resized to the grid of the level that they refine.
    refined = (
        pixels if len(group) > 1 else _level_cells(config, group[0], maps[group[0]].shape[-1], size)
        for group in head.refinement.token_groups[level]
    )
    attention, start = [], 0
    for cells in (pixels, *refined):
        part = to_tokens[:, :, start : start + cells.count**2]
        attention.append(CellMap(part.reshape(*part.shape[:2], cells.count, cells.count), cells))
        start += cells.count**2
    regions = None
    if own.regions is not None:
        cells = stage_cells(config.backbone.name, level, maps[level].shape[-1], size)
        regions = CellMap(own.regions.assignment, cells)
    if own.region_tokens is not None:
        assert regions is not None
        attention.append(CellMap(_on_pixels(to_tokens[:, :, start:], regions.values), regions.cells))
    used = {m: CellMap(shares, pixels) for m, shares in head.refinement.used_regions(level, outputs).items()}
    return LevelView(attributes, tuple(attention), regions, used)


def _level_cells(config: MgMRNConfig, level: Level, count: int, size: int) -> Cells:
    """Cells of a level's features, given those of its stage's map."""
    cells = stage_cells(config.backbone.name, level, count, size)
    for _ in range(halvings(config.backbone.name, level, config.levels[-1])):
        cells = halved(cells)
    return cells


def _on_pixels(attention: Float[Tensor, "B S K"], assignment: Float[Tensor, "B K n n"]) -> Float[Tensor, "B S n n"]:
    """Attention to a region, shared out among its pixels."""
    shares = assignment / assignment.sum(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(assignment.dtype).tiny)
    return torch.einsum("bsk,bkyx->bsyx", attention, shares)


def contributions(
    attributes: Mapping[Level, Float[Tensor, "B S"]], classes: Float[Tensor, "B S"], scale: float
) -> Float[Tensor, "B levels S"]:
    """Share of each level's attributes in the score of one class per image, given the class's attributes."""
    vectors = torch.stack([F.normalize(v.float(), dim=1) for v in attributes.values()], dim=1)
    return scale * vectors * F.normalize(classes.float(), dim=1)[:, None]


def best_two(scores: Float[np.ndarray, "B U"], seen: Bool[np.ndarray, " U"], gamma: float) -> Int[np.ndarray, "B two"]:
    """The best two classes for each image, by calibrated stacking (Chao et al., ECCV 2016, arXiv 1605.04253)."""
    return np.argsort(-(scores - gamma * seen), axis=1, kind="stable")[:, :2]
