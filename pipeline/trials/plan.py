"""Messages between the driver and the process of a trial: plain values that travel between hosts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mgmrn.config import Frozen
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import RunSpec

STEPS = "steps"
"""Key of a trial's progress in a result of Ray Tune."""


class TuneSpec(RunSpec):
    """Run on the `tune` split, the only kind that a trial of a search accepts."""

    split: Literal["tune"] = "tune"
    calibration: None = None


class TrialPlan(Frozen):
    """Training runs of one trial, trained one after another."""

    number: int
    """Number of the trial within its launch."""
    runs: tuple[RunSpec, ...]
    """Runs on each benchmark and seed; all trials of a search have them in the same order."""
    placement: Placement
    """Workers of each run and their resources."""


class SealedPlan(TrialPlan):
    """Plan of a trial that decides about hyper-parameters; its process cannot read the test sets."""

    runs: tuple[TuneSpec, ...]


class TrialReport(Frozen):
    """Report of a trial after each epoch, and once more at the end of each run."""

    run: int
    """Position of the run among those of the trial."""
    steps: int
    """Epochs since the start of the trial, over all its runs; early stopping counts them."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Metrics of the epoch; with `checkpoint`, of the epoch that counts."""
    checkpoint: str | None = None
    """Folder of the checkpoint that counts, when the run has ended."""
    failure: Failure | None = None
    """Failure that ended the trial for good."""

    def to_tune(self) -> dict[str, Any]:
        """Serialise to a result of Ray Tune."""
        return {STEPS: self.steps, "report": self.model_dump_json()}

    @classmethod
    def from_tune(cls, result: dict[str, Any]) -> TrialReport | None:
        """Report inside a result of Ray Tune; None where the result holds none."""
        return cls.model_validate_json(result["report"]) if "report" in result else None
