"""Ray Tune as the engine of trials: it places them, keeps at most so many at once, stops them, and starts lost ones again.

Which trial comes next, which is stopped and what is remembered is decided by a `Director`; Tune's own search state is not used, so
there is one truth, and it is the director's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.interruption import Interruption, unwrapped
from pipeline.train.fit import release_placement_group
from pipeline.train.messages import Failure
from pipeline.trials.plan import STEPS, Pool, TrialPlan, TrialReport
from pipeline.trials.trial import run_sealed_trial

Answer = TypeVar("Answer")
Trainable = Callable[[dict[str, Any]], None]

TRIAL_MEMORY = 2**20
"""Bytes that a trial's own process asks for: it must ask for something, and a CPU would be missing for its workers."""
TRIAL_RETRIES = 2
"""Starts of a trial whose process or workers were lost, besides the first."""
STOP_SECONDS = 5
"""What a stopped trial gets to end by itself before it is killed, and then Ray to give back its resources before we do."""

_ENVIRONMENT = {
    # The board shows how the search goes.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Results go to the study and the tracking store; Tune's own logs and pictures of them are nobody's.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A signal interrupts `Tuner.fit` as any other code; Tune would return as if all trials were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(STOP_SECONDS),
}


class Director(Protocol):
    """Decides over trials. All calls come from one thread, that of `run_trials`."""

    def next_trial(self) -> TrialPlan | Literal["later"] | None:
        """The next trial, ready to start; `later` when it waits for one that is on; None when there is none any more."""

    def reported(self, number: int, report: TrialReport) -> bool:
        """Takes a report in; whether the trial is to be stopped."""

    def ended(self, number: int, error: str | None) -> None:
        """Called once per trial: it came to its end, was stopped, or was lost for good, with the last error."""

    def interrupted(self, reason: str) -> None:
        """Closes the runs that are open; called once, when the launch is ended before its trials.

        Args:
            reason: `mgmrn.stop_reason` of these runs.
        """


def run_trials(director: Director, pool: Pool, folder: Path, trainable: Trainable = run_sealed_trial) -> None:
    """Runs trials until the director has none any more and all have ended.

    Args:
        director: decides.
        pool: how many trials at once.
        folder: Ray Tune's own files; they are of no use afterwards.
        trainable: what a trial does; sealed unless told otherwise.

    Raises:
        Interruption: when a signal ended the launch.
        Exception: what the director raised; all trials are stopped.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Nobody writes the files of results that Tune looks for in the end, and what was cut off is gone on with otherwise than it says.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with ThreadPoolExecutor(pool.concurrency, thread_name_prefix="leftovers") as leftovers:
        _run(_Glue(director, leftovers), pool, folder, trainable)


def _run(glue: _Glue, pool: Pool, folder: Path, trainable: Trainable) -> None:
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"memory": TRIAL_MEMORY}),
        tune_config=tune.TuneConfig(
            search_alg=_Proposals(glue),
            scheduler=_Stops(glue),
            num_samples=-1,
            max_concurrent_trials=pool.concurrency,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
            verbose=0,
        ),
    )
    try:
        with unwrapped():
            tuner.fit()
    except Interruption as interruption:
        ray.shutdown()  # Ends trials and ranks before their runs are closed.
        glue.director.interrupted(interruption.reason)
        raise
    if glue.error is not None:
        with suppress(Exception):
            glue.director.interrupted("stopped")
        raise glue.error


class _Glue:
    """Ray Tune's names of trials, and the director's plans."""

    def __init__(self, director: Director, leftovers: ThreadPoolExecutor) -> None:
        self.director = director
        self.plans: dict[str, TrialPlan] = {}
        """Of trials that are not over."""
        self._leftovers = leftovers
        self.error: Exception | None = None
        """What the director raised; Ray Tune would hand it on as a text of its own."""

    def ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """The director's answer, or another one once it has failed."""
        if self.error is None:
            try:
                return question()
            except Exception as error:
                self.error = error
        return otherwise

    def release_placement_group(self, plan: TrialPlan) -> None:
        """Releases the placement groups of a trial that ended, in a thread."""
        for spec in plan.runs:
            self._leftovers.submit(release_placement_group, spec.placement_file, STOP_SECONDS)

    def __reduce__(self) -> Any:
        # Tune pickles its scheduler and searcher to be able to restore a tuner, which is never done here.
        return (_Glue, (None, None))


class _Proposals(Searcher):
    """Ray Tune asks for trials."""

    def __init__(self, glue: _Glue) -> None:
        super().__init__(metric=STEPS, mode="max")
        self._glue = glue

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        plan = self._glue.ask(self._glue.director.next_trial, None)
        if plan is None:
            return Searcher.FINISHED
        if plan == "later":
            return None
        self._glue.plans[trial_id] = plan
        return {"plan": plan.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._glue.plans:
            plan, why = self._glue.plans.pop(trial_id), "the trial's process was lost" if error else None
            self._glue.release_placement_group(plan)
            self._glue.ask(lambda: self._glue.director.ended(plan.number, why), None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the director remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the director remembers."""


class _Stops(FIFOScheduler):
    """Ray Tune hands on reports and asks whether to go on."""

    def __init__(self, glue: _Glue) -> None:
        super().__init__()
        self._glue = glue

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        report = TrialReport.from_tune(result)
        if report is None:
            return TrialScheduler.CONTINUE
        number = self._glue.plans[trial.trial_id].number
        stop = self._glue.ask(lambda: self._told(number, report), True)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def _told(self, number: int, report: TrialReport) -> bool:
        """The director's answer; a disk on which no trial can write is no failure of the one that met it first."""
        if report.failure and (error := Failure(**report.failure).of_storage):
            raise error
        return self._glue.director.reported(number, report)
