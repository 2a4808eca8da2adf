"""Output and needs of a head. B images, S attributes."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mgmrn.config import Level
from mgmrn.model.regions import Regions


@dataclass(frozen=True)
class NetworkOutput:
    """Attribute vectors per level, and the regions of levels that mine them, for the regularisers."""

    attributes: dict[Level, Float[Tensor, "B S"]]
    regions: dict[Level, Regions]


@dataclass(frozen=True)
class NeededMaps:
    """Maps of the pyramid that one level's loss reads, finest first."""

    values: tuple[Level, ...]
    """Maps that the loss reads."""
    gradient: tuple[Level, ...]
    """Maps through which the loss has a gradient."""
