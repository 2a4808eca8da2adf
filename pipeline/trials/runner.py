"""Ray Tune as the engine of trials: it places them, limits how many run at once, stops them, and restarts lost ones.

A `Director` decides which trial comes next and which is stopped. Tune's own search state is not used.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.interruption import Interruption, unwrapped
from pipeline.train.fit import release_placement_group
from pipeline.trials.director import Director
from pipeline.trials.trial import STEPS, OpenTrial, SealedTrial, TrialPlan, TrialReport

Answer = TypeVar("Answer")

TRIAL_RETRIES = 2
STOP_SECONDS = 5
"""Seconds for a stopped trial to end before it is killed, and then for Ray to free its resources before the driver does."""

_ENVIRONMENT = {
    # The board shows the progress of a search.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Results go to the study and the tracking store.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A signal has to interrupt `Tuner.fit`; Tune would return as if all trials had finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(STOP_SECONDS),
}


def run_trials(director: Director, trainable: type[OpenTrial] = SealedTrial) -> None:
    """Run trials until the director has none left and all have ended.

    Runs of one worker are trained in processes that go on with the next trial. Raises `Interruption` when a signal ended the launch, and
    any error of the director; all trials are stopped then.
    """
    site = director.site
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # They warn of result files that are not written, of a resumption that Tune does not perform here, and of steps of half a second.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune", "ray.tune.utils.util"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints a traceback where the disk of its files is full.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    # Tune's own files are for a restoration that does not happen here.
    with (
        ThreadPoolExecutor(site.concurrency, thread_name_prefix="leftovers") as leftovers,
        tempfile.TemporaryDirectory(prefix="mgmrn-", ignore_cleanup_errors=True) as scratch,
    ):
        proposals = _Proposals(director, leftovers)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=proposals,
                scheduler=_Stops(proposals),
                num_samples=-1,
                max_concurrent_trials=site.concurrency,
                reuse_actors=site.opening.placement.is_alone,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            with unwrapped():
                tuner.fit()
        except Interruption as interruption:
            ray.shutdown()  # Ends trials and ranks before their runs are closed.
            director.interrupted(interruption.reason)
            raise
        if proposals.error is not None:
            with suppress(Exception):
                director.interrupted("stopped")
            raise proposals.error


class _Proposals(Searcher):
    """Searcher of Ray Tune: proposes the director's trials and reports their ends to the director."""

    def __init__(self, director: Director, leftovers: ThreadPoolExecutor) -> None:
        super().__init__(metric=STEPS, mode="max")
        self.director = director
        self.plans: dict[str, TrialPlan] = {}
        """Plans of the trials that are not over, by Ray Tune's ids."""
        self.error: Exception | None = None
        """Error of the director; Ray Tune would turn it into text."""
        self._leftovers = leftovers

    def ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """Answer of the director, or `otherwise` once it has failed."""
        if self.error is None:
            try:
                return question()
            except Exception as error:
                self.error = error
        return otherwise

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        plan = self.ask(self.director.next_trial, None)
        if plan is None:
            return Searcher.FINISHED
        if plan == "later":
            return None
        self.plans[trial_id] = plan
        return {"plan": plan.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        plan = self.plans.pop(trial_id, None)
        if plan is not None:
            for spec in plan.runs:
                self._leftovers.submit(release_placement_group, spec.placement_file, STOP_SECONDS)
            reason = "the trial's process was lost" if error else None
            self.ask(lambda: self.director.ended(plan.number, reason), None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the director keeps the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the director keeps the state."""

    def __reduce__(self) -> Any:
        # Tune pickles its searcher and scheduler for a restoration that does not happen here.
        return (_Proposals, (None, None))


class _Stops(FIFOScheduler):
    """Scheduler of Ray Tune: passes reports to the director and stops trials on its decision."""

    def __init__(self, proposals: _Proposals) -> None:
        super().__init__()
        self._proposals = proposals

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        report = TrialReport.from_tune(result)
        if report is None:
            return TrialScheduler.CONTINUE
        number = self._proposals.plans[trial.trial_id].number
        stop = self._proposals.ask(lambda: self._reported(number, report), True)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def _reported(self, number: int, report: TrialReport) -> bool:
        """Decision of the director; a full or read-only storage ends the launch, since no trial can write there."""
        if report.failure and (error := report.failure.of_storage):
            raise error
        return self._proposals.director.reported(number, report)
