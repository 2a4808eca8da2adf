"""What the driver hands to a trial, and what a trial reports back: plain values that travel between hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from mgmrn.config import Frozen
from pipeline.train.placement import Placement
from pipeline.train.spec import RunSpec

STEPS = "steps"
"""What Ray Tune counts a trial's progress in."""


@dataclass(frozen=True)
class Pool:
    """Room for trials."""

    concurrency: int
    """Trials at once."""
    placement: Placement
    """Of each of their runs."""


class TuneSpec(RunSpec):
    """A run on the `tune` split; the only kind that a trial of a search can be given."""

    split: Literal["tune"] = "tune"
    calibration: None = None


class TrialPlan(Frozen):
    """One trial: its training runs, done one after another."""

    number: int
    """Of the trial in its study."""
    runs: tuple[RunSpec, ...]
    """On each benchmark and seed; all trials of a study have them in the same order."""
    placement: Placement
    """Of each run."""


class SealedPlan(TrialPlan):
    """A trial that decides about hyper-parameters; its process cannot reach the test sets."""

    runs: tuple[TuneSpec, ...]


class TrialReport(Frozen):
    """What a trial says after an epoch, and once more when a run or the trial is over."""

    run: int
    """Which of the trial's runs."""
    steps: int
    """Epochs since the trial's start, over all its runs: what early stopping counts."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Of the epoch; with `checkpoint`, of the epoch that counts."""
    checkpoint: str | None = None
    """Where the run that has ended left what it came to."""
    failure: dict[str, str] | None = None
    """The `Failure` that ended the trial for good."""

    def to_tune(self) -> dict[str, Any]:
        """As Ray Tune carries it."""
        return {STEPS: self.steps, "report": self.model_dump_json()}

    @classmethod
    def from_tune(cls, result: dict[str, Any]) -> TrialReport | None:
        """The report in one of Tune's results; None where the result holds none."""
        return cls.model_validate_json(result["report"]) if "report" in result else None
