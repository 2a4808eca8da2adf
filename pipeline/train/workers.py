"""How many workers a run gets: a number, or the least and the most between which it shrinks and grows as hosts go and come."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mgmrn.config import EpisodicSampling, ExperimentConfig
from mgmrn.errors import UserError

OPTION = "--workers"
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class Workers:
    """Least and most; they are equal where the number is fixed."""

    least: int
    most: int

    def __str__(self) -> str:
        """As it is written on the command line."""
        return str(self.least) if self.least == self.most else f"{self.least}..{self.most}"

    def check_shares(self, config: ExperimentConfig) -> None:
        """Sees to it that the run can grow to the most: every worker needs an image for each of its micro-batches.

        Raises:
            UserError: when a global batch is too small for that.
        """
        sampling = config.sampling
        batch = sampling.ways * sampling.shots if isinstance(sampling, EpisodicSampling) else sampling.batch
        parts = config.optimiser.accumulate
        if self.most * parts > batch:
            micro = f" in {parts} micro-batches each" if parts > 1 else ""
            raise UserError(
                f"{self.most} workers cannot share a global batch of {batch} images{micro}",
                OPTION,
                "use fewer workers or a larger batch",
            )


def parse_workers(text: str) -> Workers:
    """Reads `2` or `1..4`.

    Raises:
        UserError: for anything else.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"workers must be a number or a range, got '{text}'", OPTION, "like 2 or 1..4")
    least, most = int(match[1]), int(match[2] or match[1])
    if not 1 <= least <= most:
        raise UserError(f"workers must be at least 1 and rise in a range, got '{text}'", OPTION, "like 2 or 1..4")
    return Workers(least, most)
