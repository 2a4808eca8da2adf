"""The course of a grid: each cell's tune run, then its final run with what that decided, as many at once as fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.ablation.cells import GridCell
from pipeline.ablation.plan import KnownRuns
from pipeline.console import say
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.claim import TakenError, living_holder
from pipeline.train.failure import Failure
from pipeline.train.fit import Fitted
from pipeline.train.progress import EpochLines
from pipeline.train.spec import Calibration
from pipeline.train.tracked import Opening, RunTracker, open_run, patiently
from pipeline.trials.clerk import Clerk
from pipeline.trials.plan import TrialPlan, TrialReport

LOOK_SECONDS = 5.0
"""Interval at which runs of other drivers are asked for."""


@dataclass(frozen=True)
class Task:
    """A cell that is to be run."""

    cell: GridCell
    calibration: Calibration | None
    """What a finished tune run decided; None where that is to be run first."""
    anew: bool = False
    """Leaves what earlier launches left of its runs, and starts them again."""


@dataclass(frozen=True)
class Site:
    """Where the runs of a grid are tracked and stored."""

    store: TrackingStore
    opening: Opening
    data_root: Path
    storage: Path
    """Folder of run folders."""
    clerk: Clerk


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


class GridDirector:
    """Runs cells to their ends.

    Args:
        tasks: in the order in which they are begun.
        site: shared by all runs.
        deadline: `time.monotonic()` after which no new cell is begun; those that were are brought to their end.
    """

    def __init__(self, tasks: Sequence[Task], site: Site, deadline: float | None) -> None:
        self._waiting = list(tasks)
        self._tuned: list[tuple[Task, Calibration]] = []
        """Those whose final run can start."""
        self._elsewhere: list[_Elsewhere] = []
        self._next_look = 0.0
        self._runs: dict[int, _Running] = {}
        self._site = site
        self._deadline = deadline
        self.failed = 0

    @property
    def left(self) -> int:
        """Cells that were not begun."""
        return len(self._waiting)

    def next_trial(self) -> TrialPlan | Literal["later"] | None:
        self._look_elsewhere()
        while (ready := self._next_run()) is not None:
            task, run = ready
            if not task.anew and self._take_known(task, run):
                continue
            if not self._is_being_run(run):
                with suppress(TakenError):
                    return self._begin(task, run)
            say(f"{run.name} {run.split} is being run by another command: waiting for its result")
            self._elsewhere.append(_Elsewhere(task, run))
        return "later" if self._elsewhere or any(self._leads_on(run) for run in self._runs.values()) else None

    def reported(self, number: int, report: TrialReport) -> bool:
        run = self._runs[number]
        if run.over:
            # Its process was lost after it had told all, and tells it again.
            return False
        if report.failure is not None:
            self._fail(run, Failure(**report.failure))
        elif report.checkpoint is not None:
            ended = Fitted.from_checkpoint(Path(report.checkpoint), report.metrics)
            self._site.clerk.do(lambda: run.tracker.finished(ended))
            if self._leads_on(run):
                self._tuned.append((run.task, ended.calibration))
            self._close(run)
        return False

    def ended(self, number: int, error: str | None) -> None:
        run = self._runs[number]
        if not run.over:
            self._fail(run, Failure("workers-lost", error or "the run ended without a result"))

    def interrupted(self, reason: str) -> None:
        for run in self._runs.values():
            if not run.over:
                self._site.clerk.do(partial(run.tracker.killed, reason))
                self._close(run)
        self._site.clerk.finish()

    def _next_run(self) -> tuple[Task, Cell] | None:
        """Final runs first: should all be cut off, most of what was begun is whole."""
        if self._tuned:
            task, calibration = self._tuned.pop(0)
            return task, task.cell.final(calibration)
        if self._waiting and not self._is_over_budget():
            task = self._waiting.pop(0)
            return task, task.cell.final(task.calibration) if task.calibration is not None else task.cell.tune
        return None

    def _look_elsewhere(self) -> None:
        """Takes over what other drivers have finished meanwhile; what they left unfinished is begun here."""
        if not self._elsewhere or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        elsewhere, self._elsewhere = self._elsewhere, []
        for one in elsewhere:
            if self._is_being_run(one.run):
                self._elsewhere.append(one)
            elif self._take_known(one.task, one.run):
                continue
            elif one.run.calibration is not None:
                self._tuned.append((one.task, one.run.calibration))
            else:
                self._waiting.append(one.task)

    def _take_known(self, task: Task, run: Cell) -> bool:
        """Whether the store has a result of a run, which then counts as the cell's."""
        known = patiently(partial(KnownRuns.of_cell, self._site.store, run)).finished(run)
        if known is not None and run.split == "tune" and task.cell.final_data is not None:
            self._tuned.append((task, Calibration.model_validate_json(known.tags["mgmrn.calibration"])))
        return known is not None

    def _is_being_run(self, run: Cell) -> bool:
        here = living_holder(run.folder(self._site.storage)) is not None
        return here or patiently(partial(KnownRuns.of_cell, self._site.store, run)).is_being_run(run)

    def _begin(self, task: Task, run: Cell) -> TrialPlan:
        site = self._site
        opening = replace(site.opening, anew=task.anew)
        placement = opening.placement
        spec = run.spec(site.data_root, site.storage, placement.cpus_per_worker)
        lines = EpochLines(f"{run.name} {run.split}")
        number = len(self._runs)
        self._runs[number] = _Running(task, open_run(site.store, run, spec, opening, lines.epoch))
        return TrialPlan(number=number, runs=(spec,), placement=placement)

    def _leads_on(self, run: _Running) -> bool:
        """Whether a run's end lets another one start."""
        return not run.over and run.tracker.cell.split == "tune" and run.task.cell.final_data is not None

    def _is_over_budget(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _fail(self, run: _Running, failure: Failure) -> None:
        self.failed += 1
        cell = run.tracker.cell
        say(f"error: {cell.name} {cell.split}: {failure.message}" + (f" ({failure.hint})" if failure.hint else ""))
        self._site.clerk.do(lambda: run.tracker.failed(failure))
        self._close(run)

    def _close(self, run: _Running) -> None:
        run.over = True
        self._site.clerk.do(run.tracker.close)
