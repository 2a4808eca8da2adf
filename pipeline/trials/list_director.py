"""Runs of a list: each task's tune run, then its final run with what that decided, as many at once as fit.

Serves the cells of a grid and the comparisons of a search. A run that another driver works on is waited for, and its result taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.train.cell import Cell
from pipeline.train.fit import Fitted
from pipeline.train.messages import Failure
from pipeline.train.spec import Calibration
from pipeline.train.storage import TakenError, living_holder
from pipeline.train.tracked import RunTracker, look_up, open_run
from pipeline.trials.known import KnownRuns
from pipeline.trials.plan import TrialPlan, TrialReport
from pipeline.trials.site import Site

LOOK_SECONDS = 5.0
"""Interval at which runs of other drivers are asked for."""


@dataclass(frozen=True)
class Task:
    """A tune run, and the final run that follows it."""

    tune: Cell
    final: Callable[[Calibration], Cell] | None = None
    """Final run, given what the tune run decided; None where the tune run is all."""
    calibration: Calibration | None = None
    """What a finished tune run decided; None where that is to be run first."""
    anew: bool = False
    """Leaves what earlier launches left of its runs, and starts them again."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    run_id: str
    metrics: Mapping[str, float]
    """Figures of the epoch that counts; empty where the run failed."""


@dataclass(frozen=True)
class _Elsewhere:
    """A run that another driver is working on."""

    task: Task
    run: Cell


@dataclass
class _Running:
    task: Task
    tracker: RunTracker
    over: bool = False


@dataclass
class ListDirector:
    """Runs tasks to their ends.

    Args:
        tasks: in the order in which they are begun.
        site: shared by all runs.
        say: told of every run that begins elsewhere or fails, in one line.
        on_epoch: makes, for a run, what is told of its epochs.
        deadline: `time.monotonic()` after which no new task is begun; those that were are brought to their end.
    """

    tasks: Sequence[Task]
    site: Site
    say: Callable[[str], None]
    on_epoch: Callable[[Cell], Callable[[int, Mapping[str, float]], None]]
    deadline: float | None = None
    results: dict[str, Result] = field(default_factory=dict)
    """Identity of a run → what it came to; runs that were finished before included."""
    _tuned: list[tuple[Task, Calibration]] = field(default_factory=list)
    _elsewhere: list[_Elsewhere] = field(default_factory=list)
    _runs: dict[int, _Running] = field(default_factory=dict)
    _next_look: float = 0.0

    def __post_init__(self) -> None:
        self._waiting = list(self.tasks)

    @property
    def left(self) -> int:
        """Tasks that were not begun."""
        return len(self._waiting)

    def take_known(self) -> bool:
        """Takes the results of runs that are finished already; whether anything is left to be run."""
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            if task.anew or not self._take_known(task, task.tune, self._known(task.tune)):
                self._waiting.append(task)
        return bool(self._waiting or self._tuned)

    def next_trial(self) -> TrialPlan | Literal["later"] | None:
        self._look_elsewhere()
        while (ready := self._next_run()) is not None:
            task, run = ready
            held, known = self._is_held(run), self._known(run)
            if not task.anew and self._take_known(task, run, known):
                continue
            if not held and not known.is_being_run(run):
                with suppress(TakenError):
                    return self._begin(task, run)
            self.say(f"{run.name} {run.split} is being run by another command: waiting for its result")
            self._elsewhere.append(_Elsewhere(task, run))
        return "later" if self._elsewhere or any(self._leads_on(run) for run in self._runs.values()) else None

    def reported(self, number: int, report: TrialReport) -> bool:
        run = self._runs[number]
        if run.over:  # A restarted trial reports its result a second time.
            return False
        if report.failure is not None:
            self._fail(run, Failure(**report.failure))
        elif report.checkpoint is not None:
            self._finish(run, Fitted.from_checkpoint(Path(report.checkpoint), report.metrics))
        return False

    def ended(self, number: int, error: str | None) -> None:
        run = self._runs[number]
        if not run.over:
            self._fail(run, Failure("workers-lost", error or "the run ended without a result"))

    def interrupted(self, reason: str) -> None:
        for run in self._runs.values():
            if not run.over:
                self.site.clerk.do(partial(run.tracker.killed, reason))
                self._close(run)
        self.site.clerk.finish()

    def _next_run(self) -> tuple[Task, Cell] | None:
        """Final runs first: should the launch be cut off, most of what was begun is whole."""
        if self._tuned:
            task, calibration = self._tuned.pop(0)
            assert task.final is not None
            return task, task.final(calibration)
        if self._waiting and not self._is_over_budget():
            task = self._waiting.pop(0)
            if task.calibration is not None and task.final is not None:
                return task, task.final(task.calibration)
            return task, task.tune
        return None

    def _look_elsewhere(self) -> None:
        """Takes over what other drivers have finished meanwhile; what they left unfinished is begun here."""
        if not self._elsewhere or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        elsewhere, self._elsewhere = self._elsewhere, []
        for one in elsewhere:
            held, known = self._is_held(one.run), self._known(one.run)
            if held or known.is_being_run(one.run):
                self._elsewhere.append(one)
            elif self._take_known(one.task, one.run, known):
                continue
            elif one.run.calibration is not None:
                self._tuned.append((one.task, one.run.calibration))
            else:
                self._waiting.append(one.task)

    def _take_known(self, task: Task, run: Cell, known: KnownRuns) -> bool:
        """Whether the store has a result of a run, which then counts as the task's."""
        finished = known.finished(run)
        if finished is None:
            return False
        self.results[run.identity] = Result(finished.run_id, finished.metrics)
        if run.split == "tune" and task.final is not None:
            self._tuned.append((task, Calibration.model_validate_json(finished.tags["mgmrn.calibration"])))
        return True

    def _is_held(self, run: Cell) -> bool:
        """Whether another driver holds the run's folder; asked before the store, so that a run that ends in between is not begun again."""
        return living_holder(run.folder(self.site.storage)) is not None

    def _known(self, run: Cell) -> KnownRuns:
        return look_up(partial(KnownRuns.of_cell, self.site.store, run)) or KnownRuns([], self.site.store.experiment_id)

    def _begin(self, task: Task, run: Cell) -> TrialPlan:
        opening = replace(self.site.opening, restart=task.anew)
        spec = self.site.spec(run)
        number = len(self._runs)
        self._runs[number] = _Running(task, open_run(self.site.store, run, spec, opening, self.on_epoch(run)))
        return TrialPlan(number=number, runs=(spec,), placement=opening.placement)

    def _finish(self, run: _Running, ended: Fitted) -> None:
        tracker, final = run.tracker, run.task.final
        self.results[tracker.cell.identity] = Result(tracker.run_id, ended.reported)
        self.site.clerk.do(lambda: tracker.finished(ended))
        if self._leads_on(run) and final is not None:
            self._tuned.append((run.task, ended.calibration))
        self._close(run)

    def _leads_on(self, run: _Running) -> bool:
        """Whether a run's end lets another one start."""
        return not run.over and run.tracker.cell.split == "tune" and run.task.final is not None

    def _is_over_budget(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _fail(self, run: _Running, failure: Failure) -> None:
        cell = run.tracker.cell
        self.results[cell.identity] = Result(run.tracker.run_id, {})
        self.say(f"error: {cell.name} {cell.split}: {failure.message}" + (f" ({failure.hint})" if failure.hint else ""))
        self.site.clerk.do(lambda: run.tracker.failed(failure))
        self._close(run)

    def _close(self, run: _Running) -> None:
        run.over = True
        self.site.clerk.do(run.tracker.close)
