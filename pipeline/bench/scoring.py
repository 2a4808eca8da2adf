"""Scores of a test set over all classes, against the same written out level by level and pair by pair.

N images, U classes, S attributes, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mgmrn.config import Level
from mgmrn.model.network import class_scores
from mgmrn.sources import EVALUATION_BATCH

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")


@dataclass(frozen=True)
class Predicted:
    """What a network says of a test set's images, and what is known of its classes."""

    images: Mapping[Level, Float[Tensor, "N S"]]
    classes: Float[Tensor, "U S"]


def draw_predicted(images: int, classes: int, attributes: int, seed: int = 0) -> Predicted:
    """Attribute vectors of some images at `LEVELS`, and of some classes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {level: torch.randn(images, attributes, generator=generator) for level in LEVELS}
    return Predicted(drawn, torch.rand(classes, attributes, generator=generator))


def scored(predicted: Predicted, scale: float) -> Float[Tensor, "N U"]:
    """Batch by batch, as evaluation does."""
    return torch.cat([class_scores(part, predicted.classes, scale) for part in _batches(predicted)])


def scored_plainly(predicted: Predicted, scale: float) -> Float[Tensor, "N U"]:
    """The paper's sum as it stands: a cosine for every level, image and class, batch by batch."""
    rows = []
    for part in _batches(predicted):
        cosines = [F.cosine_similarity(v[:, None], predicted.classes[None], dim=2) for v in part.values()]
        rows.append(scale * torch.stack(cosines).sum(dim=0))
    return torch.cat(rows)


def _batches(predicted: Predicted) -> list[dict[Level, Tensor]]:
    parts = zip(*(torch.split(v, EVALUATION_BATCH) for v in predicted.images.values()), strict=True)
    return [dict(zip(predicted.images, part, strict=True)) for part in parts]
