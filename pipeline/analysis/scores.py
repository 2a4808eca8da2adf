"""What is compared: one score card per cell of a grid, whether it was run or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


def prefix_of(split: str) -> str:
    """Of figures in the tracking store: `tune` is scored on validation images, `final` on test images."""
    return "val/" if split == "tune" else "test/"


CellState = Literal["cached", "stale", "running", "failed", "new", "missing"]
"""Finished; finished with other code, data or environment; on now; failed; not run yet; benchmark not at hand."""

FIGURES = {
    "zsl_t1": "T1",
    "gzsl_u": "U",
    "gzsl_s": "S",
    "gzsl_h": "H",
    "gzsl_h_oracle": "H*",
    "ausuc": "AUSUC",
}
"""Accuracies by their name in the tracking store (without `test/` or `val/`) → the field's symbol."""


@dataclass(frozen=True)
class ScoreCard:
    """One cell: a benchmark, a variant and a seed, and what its evaluated run came to."""

    benchmark: str
    """As shown, like `CUB` or `CUB-standin`."""
    variant: str
    seed: int
    state: CellState
    reason: str = ""
    """Why a cell is stale, failed or missing."""
    run_id: str | None = None
    """Of the evaluated run, the one that every number of the card is from."""
    experiment_id: str | None = None
    """Of that run, for links into the MLflow UI."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """By the keys of `FIGURES`, as fractions; empty without a finished run."""
    seconds: float | None = None
    """Wall-clock seconds of the cell's runs together."""
    gpu_seconds: float | None = None
    """GPU seconds of the same."""

    @property
    def has_score(self) -> bool:
        """Whether it counts in a mean."""
        return bool(self.metrics)
