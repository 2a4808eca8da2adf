"""Director of trials: decides which is next and which is stopped, and keeps their runs in the tracking store; and what it works with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.spool import OnEpoch
from pipeline.storage import StoragePath
from pipeline.train.cell import Cell
from pipeline.train.fit import Fitted
from pipeline.train.messages import Failure
from pipeline.train.tracked import Opening, RunTracker, open_run
from pipeline.trials.trial import TrialPlan, TrialReport


class Clerk:
    """Thread that makes plots, uploads artifacts and ends runs one after another, so that the loop of Ray Tune does not wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clerk")
        self._errands: list[Future[Any]] = []

    def do(self, errand: Callable[[], Any]) -> None:
        self._errands.append(self._pool.submit(errand))

    def wait(self) -> None:
        """Wait for the errands so far, and raise the error of the first that failed."""
        for errand in self._errands:
            errand.result()

    def finish(self) -> None:
        """`wait`, after which there are no more errands."""
        self._pool.shutdown(wait=True)
        self.wait()


@dataclass(frozen=True)
class Site:
    """What all trials of a launch share."""

    opening: Opening
    """Store, places, parent run and placement of each run."""
    concurrency: int
    clerk: Clerk = field(default_factory=Clerk)

    @property
    def storage(self) -> StoragePath:
        return self.opening.where.storage

    def log_figures(self, step: int, figures: Mapping[str, float]) -> None:
        self.opening.parent.spool.append(step, figures)


class TrackedTrial:
    """One trial: its runs in their order, and the tracker of the run that is open.

    Runs at the positions `finished` were recorded by an earlier driver. Raises a `TakenError` when another driver works on a run.
    """

    def __init__(
        self,
        number: int,
        cells: Sequence[Cell],
        clerk: Clerk,
        opening: Opening,
        finished: Collection[int] = (),
        on_epoch: OnEpoch = lambda step, metrics: None,
    ) -> None:
        self.number = number
        self.cells = cells
        self.is_over = False
        self.scores: list[float] = []
        """Scores of the runs that a search has begun."""
        self.costs: list[float] = []
        """Costs of the runs that a search has finished."""
        self._clerk = clerk
        self._opening = opening
        self._finished = finished
        self._on_epoch = on_epoch
        self._tracker: RunTracker | None = None
        self.plan = TrialPlan(number=number, runs=tuple(map(opening.spec, cells)), placement=opening.placement)
        self._open(0)

    @property
    def epochs(self) -> int:
        return sum(spec.epochs for spec in self.plan.runs)

    def finish_run(self, report: TrialReport) -> Fitted | None:
        """Record the end of a run and open the next one; None for a run that was recorded before.

        A trial that was started again reports its finished runs once more.
        """
        assert report.checkpoint is not None
        if report.run < self._run:
            return None
        ended = None
        if self._tracker is not None:
            found = ended = Fitted.from_checkpoint(StoragePath(report.checkpoint), report.metrics)
            self._end_run(lambda tracker: tracker.finished(found))
        if report.run + 1 < len(self.cells):
            self._open(report.run + 1)
        else:
            self.is_over = True
        return ended

    def fail(self, failure: Failure) -> None:
        self.is_over = True
        self._end_run(lambda tracker: tracker.failed(failure))

    def kill(self, reason: str) -> None:
        self.is_over = True
        self._end_run(lambda tracker: tracker.killed(reason))

    def _open(self, run: int) -> None:
        self._run = run
        if run not in self._finished:
            self._tracker = open_run(self.cells[run], self._opening, self._on_epoch)

    def _end_run(self, record: Callable[[RunTracker], object]) -> None:
        """Record the end of the open run and close it, in the thread of the clerk."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._clerk.do(lambda: record(tracker))
            self._clerk.do(tracker.close)


class Director(ABC):
    """Decisions about the trials of a launch. All calls come from the thread of `run_trials`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.trials: dict[int, TrackedTrial] = {}

    @abstractmethod
    def next_trial(self) -> TrialPlan | Literal["later"] | None:
        """Next trial; `later` while one depends on a trial that is running; None when there is none left."""

    @abstractmethod
    def record(self, trial: TrackedTrial, report: TrialReport) -> bool:
        """Record an epoch or the end of a run; returns whether to stop the trial."""

    @abstractmethod
    def fail(self, trial: TrackedTrial, failure: Failure) -> None:
        """End a trial as failed."""

    def reported(self, number: int, report: TrialReport) -> bool:
        trial = self.trials[number]
        if trial.is_over:  # A restarted trial reports its result a second time.
            return False
        if report.failure is not None:
            self.fail(trial, report.failure)
            return False
        return self.record(trial, report)

    def ended(self, number: int, error: str | None) -> None:
        """Record that a trial ended, was stopped, or was lost for good, with the last error; called once per trial."""
        if not self.trials[number].is_over:
            self.fail(self.trials[number], Failure("workers-lost", error or "the run ended without a result"))

    def interrupted(self, reason: str) -> None:
        """Close the open runs with `reason` as `mgmrn.stop_reason`; called once when the launch ends before its trials."""
        for trial in self.trials.values():
            if not trial.is_over:
                trial.kill(reason)
        self.site.clerk.finish()
