"""What a trial does, in a process of its own on the cluster: ordinary training runs, whose epochs it reports to Ray Tune.

A trial that is started again (its host died, or the driver was killed and the search resumed) first reports what its runs had already
noted, so that early stopping and the sampler see the whole curve, and then goes on from the latest checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ray import tune

from mgmrn.data.seal import close_seal
from pipeline.spool import Spool
from pipeline.train.fit import Fitted, fit, release_placement_group
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import RunSpec
from pipeline.trials.plan import SealedPlan, TrialPlan, TrialReport

FOLLOW_SECONDS = 0.2


class WorkersLostError(RuntimeError):
    """Workers died more often than Ray Train replaces them; Ray Tune starts the trial again, which goes on."""


def run_sealed_trial(config: dict[str, Any]) -> None:
    """The trainable of a search: test sets are out of its reach.

    Args:
        config: `{"plan": SealedPlan as JSON}`.

    Raises:
        WorkersLostError: as `run_trial`.
    """
    close_seal()
    _run(SealedPlan.model_validate_json(config["plan"]))


def run_trial(config: dict[str, Any]) -> None:
    """The trainable of a grid, whose runs are also on the `final` split.

    Args:
        config: `{"plan": TrialPlan as JSON}`.

    Raises:
        WorkersLostError: for a failure that another attempt may mend; all others are reported and end the trial.
    """
    _run(TrialPlan.model_validate_json(config["plan"]))


def _run(plan: TrialPlan) -> None:
    steps = 0
    for run, spec in enumerate(plan.runs):
        training = _Training(spec, plan.placement)
        for metrics in training.epochs():
            tune.report(TrialReport(run=run, steps=steps + int(metrics["epoch"]), metrics=metrics).to_tune())
        ended = training.result()
        if isinstance(ended, Failure):
            if ended.reason == "workers-lost":
                raise WorkersLostError(ended.message)
            failure = {key: str(value) for key, value in asdict(ended).items()}
            tune.report(TrialReport(run=run, steps=steps, failure=failure).to_tune())
            return
        steps += spec.epochs
        report = TrialReport(run=run, steps=steps, metrics=ended.metrics, checkpoint=str(ended.checkpoint))
        tune.report(report.to_tune())


class _Training:
    """One `fit` in a thread, and the epochs that its controller notes meanwhile."""

    def __init__(self, spec: RunSpec, placement: Placement) -> None:
        self._spool = Spool(spec.spool_file)
        self._ended: Fitted | Failure | None = None
        self._error: BaseException | None = None
        # A daemon: when Tune stops the trial, nothing may hold its process back.
        self._thread = threading.Thread(target=self._fit, args=(spec, placement), name="fit", daemon=True)
        self._thread.start()

    def epochs(self) -> Iterator[dict[str, float]]:
        """Rank 0's metrics of every epoch, once each and in order, until the run has ended."""
        offset = last = 0
        while True:
            over = not self._thread.is_alive()
            for entry in self._spool.read(offset):
                offset = entry.end_offset
                if entry.kind == "metrics" and entry.content["step"] > last:
                    last = entry.content["step"]
                    yield dict(entry.content["metrics"])
            if over:
                return
            self._thread.join(FOLLOW_SECONDS)

    def result(self) -> Fitted | Failure:
        """What the run came to."""
        if self._error is not None:
            raise self._error
        assert self._ended is not None
        return self._ended

    def _fit(self, spec: RunSpec, placement: Placement) -> None:
        try:
            release_placement_group(spec.placement_file)  # Of a process of this trial that was lost.
            self._ended = fit(spec, placement)
        except BaseException as error:  # Handed to the caller of `result`.
            self._error = error
