"""What a head says about a batch. B images, S attributes."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mgmrn.config import Level
from mgmrn.model.regions import Regions


@dataclass(frozen=True)
class NetworkOutput:
    """Attribute vectors per level, and the regions that the regularisers look at (levels that mine some)."""

    attributes: dict[Level, Float[Tensor, "B S"]]
    regions: dict[Level, Regions]


@dataclass(frozen=True)
class NeededMaps:
    """What one level's loss reads from the pyramid, each finest first."""

    values: tuple[Level, ...]
    """Maps that must be there."""
    gradient: tuple[Level, ...]
    """Maps through which the loss has a gradient."""
