"""Process of a trial on the cluster: ordinary training runs, whose epochs it reports to Ray Tune; and the messages that it exchanges
with the driver, plain values that travel between hosts.

A trial that is started again, because its host died or an interrupted search was resumed, first reports the epochs that its runs have
noted, so that early stopping and the sampler see the whole curve, and then resumes from the latest checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field
from ray import tune

from mgmrn.config import Frozen
from mgmrn.data.seal import close_seal
from pipeline.spool import Spool
from pipeline.train.fit import Fitted, fit, release_placement_group
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import RunSpec

STEPS = "steps"
"""Key of a trial's progress in a result of Ray Tune."""
FOLLOW_SECONDS = 0.2
"""Interval at which new epochs are looked for."""


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


class WorkersLostError(RuntimeError):
    """Workers died more often than Ray Train replaces them; Ray Tune starts the trial again, which resumes."""


def run_sealed_trial(config: dict[str, Any]) -> None:
    """Trainable of a search, which cannot read the test sets; `config` is `{"plan": SealedPlan as JSON}`."""
    close_seal()
    _run(SealedPlan.model_validate_json(config["plan"]))


def run_trial(config: dict[str, Any]) -> None:
    """Trainable of a grid, whose runs are also on the `final` split; `config` is `{"plan": TrialPlan as JSON}`."""
    _run(TrialPlan.model_validate_json(config["plan"]))


def _run(plan: TrialPlan) -> None:
    """Train the runs of a trial; raises a `WorkersLostError` for a failure that another attempt may mend."""
    steps = 0
    for run, spec in enumerate(plan.runs):
        training = _Training(spec, plan.placement)
        for metrics in training.epochs():
            tune.report(TrialReport(run=run, steps=steps + int(metrics["epoch"]), metrics=metrics).to_tune())
        ended = training.result()
        if isinstance(ended, Failure):
            if ended.reason == "workers-lost":
                raise WorkersLostError(ended.message)
            tune.report(TrialReport(run=run, steps=steps, failure=ended).to_tune())
            return
        steps += spec.epochs
        report = TrialReport(run=run, steps=steps, metrics=ended.metrics, checkpoint=str(ended.checkpoint))
        tune.report(report.to_tune())


class _Training:
    """One `fit` in a thread, and the epochs that its controller notes."""

    def __init__(self, spec: RunSpec, placement: Placement) -> None:
        self._spool = Spool(spec.spool_file)
        self._ended: Fitted | Failure | BaseException | None = None
        # A daemon, so that it does not hold up the process of a trial that Tune stops.
        self._thread = threading.Thread(target=self._fit, args=(spec, placement), name="fit", daemon=True)
        self._thread.start()

    def epochs(self) -> Iterator[dict[str, float]]:
        """Metrics of rank 0 for each epoch, once and in order, until the run has ended."""
        offset = last = 0
        while True:
            is_over = not self._thread.is_alive()
            for entry in self._spool.read(offset):
                offset = entry.end_offset
                if entry.kind == "metrics" and entry.content["step"] > last:
                    last = entry.content["step"]
                    yield dict(entry.content["metrics"])
            if is_over:
                return
            self._thread.join(FOLLOW_SECONDS)

    def result(self) -> Fitted | Failure:
        """Result of `fit`, whose errors are raised here."""
        if isinstance(self._ended, BaseException):
            raise self._ended
        assert self._ended is not None
        return self._ended

    def _fit(self, spec: RunSpec, placement: Placement) -> None:
        try:
            release_placement_group(spec.placement_file)  # Left by a lost process of this trial.
            self._ended = fit(spec, placement)
        except BaseException as error:
            self._ended = error
