"""Director of a list of runs: the first run of each task, then the final run with what a tune run decided.

It serves `train`, the cells of a grid, the comparisons of a search, and reproductions. Runs that another driver works on are waited for.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from pipeline.claims import TakenError, living_holder
from pipeline.console import say
from pipeline.spool import OnEpoch
from pipeline.train.cell import Cell, RunSummary
from pipeline.train.messages import Failure
from pipeline.train.spec import Calibration
from pipeline.train.tracked import cached_summary, epoch_lines, look_up, recorded_calibration
from pipeline.trials.director import Director, Site, TrackedTrial
from pipeline.trials.known import KnownRuns
from pipeline.trials.runner import run_trials
from pipeline.trials.trial import OpenTrial, TrialPlan, TrialReport

LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Task:
    """One run, and the final run that may follow a tune run."""

    first: Cell
    final: Callable[[Calibration], Cell] | None = None
    """Function from the calibration of the tune run to the final run; None without a final run."""
    calibration: Calibration | None = None
    """Calibration of a finished tune run; None runs it first."""
    restart: bool = False
    """Whether to ignore earlier runs and train both again."""


class ListDirector(Director):
    """Director that runs all tasks to their ends, in their order.

    Args:
        known: finds the runs of the store that may answer for a cell.
        say: prints a line about a run that failed or that another driver works on.
        on_epoch: makes the function that is called after each epoch of a run.
        on_failure: called after a run has failed; an error that it raises ends the launch.
        deadline: time (`time.monotonic()`) after which no new task begins.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        site: Site,
        *,
        known: Callable[[Cell], KnownRuns],
        say: Callable[[str], None] = say,
        on_epoch: Callable[[Cell], OnEpoch] = lambda run: epoch_lines(run.label),
        on_failure: Callable[[Cell, Failure], None] = lambda run, failure: None,
        deadline: float | None = None,
    ) -> None:
        super().__init__(site)
        self.summaries: dict[str, RunSummary] = {}
        """Outcome of each run by its identity, finished before or now."""
        self.waiting = list(tasks)
        """Tasks that have not begun."""
        self._finals: list[tuple[Task, Cell]] = []
        self._elsewhere: list[tuple[Task, Cell]] = []
        """Runs that other drivers work on."""
        self._tasks: dict[int, Task] = {}
        self._read_known, self._deadline = known, deadline
        self._say, self._on_epoch, self._on_failure = say, on_epoch, on_failure
        self._next_look = 0.0

    def take_known(self) -> bool:
        """Take the results of finished runs from the store; returns whether any run is left."""
        waiting, self.waiting = self.waiting, []
        for task in waiting:
            if task.restart or not self._take_known(task, task.first, self._known(task.first)):
                self.waiting.append(task)
        return bool(self.waiting or self._finals)

    def next_trial(self) -> TrialPlan | Literal["later"] | None:
        self._look_elsewhere()
        while (ready := self._next_run()) is not None:
            task, run = ready
            is_on, known = self._look_up(run)
            if not task.restart and self._take_known(task, run, known):
                continue
            if not is_on:
                with suppress(TakenError):
                    return self._begin(task, run)
            self._say(f"{run.label} is being run by another command: waiting for its result")
            self._elsewhere.append((task, run))
        open_trials = (trial for trial in self.trials.values() if not trial.is_over)
        leads_on = any(one.cells[0].split == "tune" and self._tasks[one.number].final for one in open_trials)
        return "later" if self._elsewhere or leads_on else None

    def record(self, trial: TrackedTrial, report: TrialReport) -> bool:
        if report.checkpoint is not None:
            ended = trial.finish_run(report)
            assert ended is not None
            (cell,) = trial.cells
            # The run may get its id later, from a tracking store that is away now.
            self.summaries[cell.identity] = cell.summary("", "finished", ended.calibration.gamma, ended.reported)
            if cell.split == "tune":
                self._queue_final(self._tasks[trial.number], ended.calibration)
        return False

    def _next_run(self) -> tuple[Task, Cell] | None:
        """Next run, final runs first, so that an interrupted launch leaves few tasks half done."""
        if self._finals:
            return self._finals.pop(0)
        is_over_budget = self._deadline is not None and time.monotonic() >= self._deadline
        if not self.waiting or is_over_budget:
            return None
        task = self.waiting.pop(0)
        if task.calibration is not None and task.final is not None:
            return task, task.final(task.calibration)
        return task, task.first

    def _queue_final(self, task: Task, calibration: Calibration | None) -> None:
        if task.final is not None and calibration is not None:
            self._finals.append((task, task.final(calibration)))

    def _look_elsewhere(self) -> None:
        """Take the results that other drivers have finished; runs that they left unfinished are queued here."""
        if not self._elsewhere or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        elsewhere, self._elsewhere = self._elsewhere, []
        for task, run in elsewhere:
            is_on, known = self._look_up(run)
            if is_on:
                self._elsewhere.append((task, run))
            elif self._take_known(task, run, known):
                continue
            elif run.split == "final":
                self._finals.append((task, run))
            else:
                self.waiting.append(task)

    def _look_up(self, run: Cell) -> tuple[bool, KnownRuns]:
        """Whether another driver works on a run, and the runs of the store that may answer for it.

        The claim is read before the store, so that a run that ends in between is not begun again.
        """
        is_held = living_holder(run.folder(self.site.storage)) is not None
        known = self._known(run)
        return is_held or known.is_being_run(run), known

    def _known(self, run: Cell) -> KnownRuns:
        return look_up(partial(self._read_known, run)) or KnownRuns.among([], self.site.opening.store.experiment_id)

    def _take_known(self, task: Task, run: Cell, known: KnownRuns) -> bool:
        """Take the result of a run from the store; returns whether there is one."""
        finished = known.finished(run)
        if finished is None:
            return False
        self.summaries[run.identity] = cached_summary(run, finished)
        if run.split == "tune":
            self._queue_final(task, recorded_calibration(finished))
        return True

    def _begin(self, task: Task, run: Cell) -> TrialPlan:
        opening, number = replace(self.site.opening, restart=task.restart), len(self.trials)
        self.trials[number] = TrackedTrial(number, [run], self.site.clerk, opening, on_epoch=self._on_epoch(run))
        self._tasks[number] = task
        return self.trials[number].plan

    def fail(self, trial: TrackedTrial, failure: Failure) -> None:
        (cell,) = trial.cells
        self.summaries[cell.identity] = cell.summary("", "failed")
        trial.fail(failure)
        self._on_failure(cell, failure)
        self._say(failure.about(cell.label))


def raise_mistake(run: Cell, failure: Failure) -> None:
    """Raises the error that the user must mend, where the failure is one."""
    if failure.mistake:
        raise failure.mistake


def run_list(director: ListDirector) -> None:
    """Runs the tasks of a director, and waits until their ends are recorded."""
    run_trials(director, OpenTrial)
    director.site.clerk.finish()
