"""Process of a trial on the cluster: ordinary training runs, whose epochs it reports to Ray Tune; and the messages that it exchanges
with the driver, plain values that travel between hosts.

Runs of one worker are trained in the process itself, which goes on with the next trial; runs of several workers by Ray Train.
A trial that is started again, because its host died or an interrupted search was resumed, first reports the epochs that its runs have
noted, so that early stopping and the sampler see the whole curve, and then resumes from the latest checkpoint.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from typing import Any, ClassVar, Literal

import psutil  # type: ignore[import-untyped]
from pydantic import Field
from ray import tune

from mgmrn.config import Frozen
from mgmrn.data.seal import close_seal
from pipeline.train.fit import Fitted, fit
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import RunSpec

STEPS = "steps"
TRIAL_MEMORY = 2**20
"""Bytes that the process of a trial of several workers asks for: Tune demands some resource, and a CPU would be missing for them."""
GROWTH = 2
"""Size of a process after a trial, relative to that after its first one, above which a new process takes the next trial."""


class TuneSpec(RunSpec):
    """Run on the `tune` split, the only kind that a trial of a search accepts."""

    split: Literal["tune"] = "tune"
    calibration: None = None


class TrialPlan(Frozen):
    """Training runs of one trial, trained one after another."""

    number: int
    runs: tuple[RunSpec, ...]
    """Runs on each benchmark and seed; all trials of a search have them in the same order."""
    placement: Placement


class SealedPlan(TrialPlan):
    """Plan of a trial that decides about hyper-parameters; its process cannot read the test sets."""

    runs: tuple[TuneSpec, ...]


class TrialReport(Frozen):
    """Report of a trial after each epoch, and once more at the end of each run."""

    run: int
    steps: int
    """Epochs since the start of the trial, over all its runs; early stopping counts them."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Metrics of the epoch; with `checkpoint`, of the epoch that counts."""
    checkpoint: str | None = None
    failure: Failure | None = None

    def to_tune(self) -> dict[str, Any]:
        return {STEPS: self.steps, "report": self.model_dump_json()}

    @classmethod
    def from_tune(cls, result: dict[str, Any]) -> TrialReport | None:
        """Report inside a result of Ray Tune; None where the result holds none."""
        return cls.model_validate_json(result["report"]) if "report" in result else None


class OpenTrial(tune.Trainable):
    """Process of a grid's trials, whose runs are also on the `final` split; its config is `{"plan": TrialPlan as JSON}`.

    Each step is one report. The process of trials of one worker is used for trial after trial, until one of them runs out of memory or
    leaves it `GROWTH` times as large as the first one.
    """

    plan_type: ClassVar[type[TrialPlan]] = TrialPlan

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        placement = cls.plan_type.model_validate_json(config["plan"]).placement
        own = placement.resources_per_worker if placement.is_alone else {"memory": TRIAL_MEMORY}
        return tune.PlacementGroupFactory([own])

    def setup(self, config: dict[str, Any]) -> None:
        self._first_bytes = 0
        self._ran_out_of_memory = self._is_spoiled = False
        self._begin(config)

    def step(self) -> dict[str, Any]:
        if self._is_spoiled:
            # Ray Tune starts the trial in a new process.
            raise RuntimeError("the process of an earlier trial had no memory left; another one takes over")
        report = next(self._reports, None)
        if report is None:
            return {STEPS: 0, "done": True}
        if report.failure is not None and report.failure.reason == "out-of-memory":
            self._ran_out_of_memory = True
        return report.to_tune()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        import torch

        self._reports.close()
        gc.collect()
        torch.cuda.empty_cache()
        size = psutil.Process().memory_info().rss
        self._first_bytes = self._first_bytes or size
        self._is_spoiled = self._ran_out_of_memory or size > GROWTH * self._first_bytes
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._reports.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._reports = _reports(self.plan_type.model_validate_json(config["plan"]))


class SealedTrial(OpenTrial):
    """Process of a search's trials, which cannot read the test sets; its config is `{"plan": SealedPlan as JSON}`."""

    plan_type: ClassVar[type[TrialPlan]] = SealedPlan

    def setup(self, config: dict[str, Any]) -> None:
        close_seal()
        super().setup(config)


def _reports(plan: TrialPlan) -> Generator[TrialReport, None, None]:
    """Train the runs of a trial; raises a `RuntimeError` where workers died more often than Ray Train replaces them.

    Ray Tune then starts the trial again, which resumes.
    """
    steps = 0
    for run, spec in enumerate(plan.runs):
        for told in fit(spec, plan.placement):
            if isinstance(told, Fitted):
                steps += spec.epochs
                yield TrialReport(run=run, steps=steps, metrics=told.metrics, checkpoint=str(told.checkpoint))
            elif not isinstance(told, Failure):
                yield TrialReport(run=run, steps=steps + int(told["epoch"]), metrics=told)
            elif told.reason == "workers-lost":
                raise RuntimeError(told.message)
            else:
                yield TrialReport(run=run, steps=steps, failure=told)
                return
