"""Place of a map's cells on the picture, and whether a map's peak finds a part.

Inputs are square: n cells along an axis, with evenly spaced centres. Lengths are pixels of the network's input. P
boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mgmrn.config import BackboneName, ImageConfig, Level
from mgmrn.data.images import CROP_MARGIN
from mgmrn.model import timm_backbone
from mgmrn.model.backbone import stride
from mgmrn.trunks import TRUNKS

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Cells:
    """Cells of a square map along one axis of the input."""

    count: int
    first: float
    """Centre of the first cell."""
    step: float
    """Distance between two centres."""


def stage_cells(backbone: BackboneName, level: Level, count: int, size: int) -> Cells:
    """The `count` cells of a trunk's stage on an input of size×size, at the centres of their receptive fields."""
    step = float(stride(backbone, level))
    if backbone in TRUNKS:
        return Cells(count, step / 2 if TRUNKS[backbone].patches else 0.5, step)
    return Cells(count, timm_backbone.first_centre(backbone, level, size), step)


def halved(cells: Cells) -> Cells:
    """Cells after `mgmrn.model.granularity.halve`, which keeps the first and the last centre."""
    count = (cells.count + 1) // 2
    span = cells.step * (cells.count - 1)
    return Cells(count, cells.first, span / (count - 1) if count > 1 else cells.step)


def interpolate(maps: Float[Tensor, "*batch n n"], cells: Cells, size: int) -> Float[Tensor, "*batch size size"]:
    """Maps at every pixel of the input, linear between the cells' centres; the outermost cells extend to the edge."""
    pixels = torch.arange(size, dtype=torch.float32) + 0.5
    position = ((pixels - cells.first) / cells.step).clamp(0, cells.count - 1)
    weights = (1 - (position[:, None] - torch.arange(cells.count)).abs()).clamp_min(0).to(maps)
    return weights @ maps @ weights.mT


def on_input(maps: Float[Tensor, "*batch n n"], cells: Cells, size: int) -> Float[Tensor, "*batch size size"]:
    """Non-negative maps at every pixel, in proportion to `interpolate`; each keeps its sum."""
    spread = interpolate(maps, cells, size)
    mass = spread.sum(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return spread * (maps.sum(dim=(-2, -1), keepdim=True) / mass)


def box_on_input(box: Box, width: int, height: int, config: ImageConfig) -> Box:
    """A box of a picture of `width` by `height` pixels in the network's input; empty if cropped away."""
    left, top, right, bottom = box
    if config.resize == "squash":
        scale_x, scale_y, off_x, off_y = config.size / width, config.size / height, 0.0, 0.0
    else:
        scale_x = scale_y = round(config.size * CROP_MARGIN) / min(width, height)
        off_x, off_y = ((side * scale_x - config.size) / 2 for side in (width, height))
    edges = (left * scale_x - off_x, top * scale_y - off_y, right * scale_x - off_x, bottom * scale_y - off_y)
    clipped = [min(max(edge, 0.0), float(config.size)) for edge in edges]
    return clipped[0], clipped[1], clipped[2], clipped[3]


def hits(boxes: Float[Tensor, "P 4"], size: int) -> Bool[Tensor, "2 size size"]:
    """Whether a map with its peak at each pixel finds one of some boxes in the input, by two measures.

    - Pointing game (Zhang et al., ECCV 2016, arXiv 1608.00507): the peak lies in the box.
    - Correctly localised part, whose percentage is PCP, as APN measures it (Xu et al., NeurIPS 2020, arXiv 2008.08290,
      and its published code): a box of the same size around the peak, moved into the picture, has an IoU of at least 1/2
      with the box. For an annotated point, its sides are a quarter of those of the bird's box.

    The mean over pixels is the probability that a random pixel hits.
    """
    pixels = torch.arange(size) + 0.5
    starts, ends = boxes[:, :2, None], boxes[:, 2:, None]
    sides = ends - starts
    inside = (starts <= pixels) & (pixels <= ends)
    moved = torch.minimum((pixels - sides / 2).clamp_min(0), size - sides)
    overlap = (1 - (moved - starts).abs() / sides).clamp_min(0)
    # Two boxes of area A that share o have an IoU of o / (2A − o): at least 1/2 where o is at least 2A/3.
    located = overlap[:, 1, :, None] * overlap[:, 0, None, :] >= 2 / 3
    return torch.stack([(inside[:, 1, :, None] & inside[:, 0, None, :]).any(dim=0), located.any(dim=0)])
