"""Trials of a search: which is next, what its reports mean, when it is stopped, and what becomes of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mgmrn.data.splits import TuneData
from mgmrn.errors import UserError
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.search.board import Board
from pipeline.search.config import SearchConfig
from pipeline.search.objective import COST_KEYS, METRIC_KEYS, mean_normalised, mean_rank
from pipeline.search.space import Space
from pipeline.search.study import Record, Study
from pipeline.search.tracked_trial import TrackedTrial
from pipeline.train.cell import Cell, make_cell
from pipeline.train.messages import Failure
from pipeline.train.tracked import finished_run, look_up
from pipeline.trials.plan import TrialPlan, TrialReport
from pipeline.trials.site import Site

LARGEST_STREAK = 50
"""Proposals in a row that only repeat earlier trials, after which the space is taken for exhausted."""


@dataclass(frozen=True)
class Tunables:
    """Tuning splits of a search, and the runs that can be had of them."""

    data: Mapping[str | None, TuneData]
    """Benchmark, or None for the base's own → its tuning split; in the order in which a trial runs them."""
    data_root: Path

    def cell(self, composed: ComposedConfig, benchmark: str | None, seed: int, variant: str) -> Cell:
        """One run of a config."""
        found = replace(composed, config=resolve_weights(composed.config, self.data_root))
        return make_cell(found, seed, self.data[benchmark], None, variant)


class SearchDirector:
    """Runs the trials that the study proposes.

    Args:
        config: the search.
        study: its memory.
        space: from which it draws.
        site: shared by all trials.
        tunables: the data.
        references: the base's score on each benchmark, by which scores are divided where there are several.
        board: shows how it goes.
        deadline: `time.monotonic()` after which no new trial starts.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        space: Space,
        site: Site,
        tunables: Tunables,
        references: Mapping[str | None, float],
        board: Board,
        deadline: float | None,
    ) -> None:
        self._config = config
        self._study = study
        self._space = space
        self._site = site
        self._tunables = tunables
        self._references = [references[name] for name in tunables.data for _ in config.seeds]
        self._board = board
        self._deadline = deadline
        self._cost = COST_KEYS.get(config.objective.cost)
        self._left = study.left_running()
        self._trials: dict[int, TrackedTrial] = {}
        self._twins: dict[tuple[str, ...], int] = {}
        for record in study.records():
            if record.state not in ("failed", "repeated") and (key := self._key(record)):
                self._twins.setdefault(key, record.number)

    def next_trial(self) -> TrialPlan | None:
        streak = 0
        while True:
            resumed = bool(self._left)
            if not resumed and (self._is_enough() or streak >= LARGEST_STREAK):
                return None
            record = self._left.pop(0) if resumed else self._study.propose()
            try:
                cells = self._cells(record)
            except UserError as error:
                self._study.fail(record.number, f"bad-input: {error}")
                self._board.failed(record.number, str(error))
                continue
            twin = self._twins.setdefault(_key(cells), record.number)
            if twin != record.number:
                self._study.repeat(record.number, twin)
                streak += 1
                continue
            return self._begin(record, cells, resumed=resumed)

    def reported(self, number: int, report: TrialReport) -> bool:
        trial = self._trials[number]
        if trial.over:
            return False
        if report.failure is not None:
            self._fail(trial, Failure(**report.failure))
            return False
        trial.score(report.run, report.metrics[METRIC_KEYS[self._config.objective.metric]])
        score = self._combined(number, report.steps, trial.scores)
        if report.checkpoint is not None:
            if self._cost is not None:
                trial.cost(report.run, report.metrics[self._cost])
            trial.run_finished(report)
            if report.run + 1 == len(trial.cells):
                self._finish(trial, score, report.steps)
            return False
        self._board.epoch(number, report.steps, score)
        stop = self._study.report(number, report.steps, score, trial.scores)
        if not stop or report.steps >= trial.epochs:  # There is nothing to be saved any more.
            return False
        trial.kill("stopped early")
        self._study.stop(number)
        self._board.stopped(number, score)
        return True

    def ended(self, number: int, error: str | None) -> None:
        trial = self._trials[number]
        if not trial.over:
            self._fail(trial, Failure("workers-lost", error or "the trial ended without a result"))

    def interrupted(self, reason: str) -> None:
        for trial in self._trials.values():
            if not trial.over:
                trial.kill(reason)
        self._site.clerk.finish()

    def _begin(self, record: Record, cells: Sequence[Cell], *, resumed: bool) -> TrialPlan:
        opening = replace(self._site.opening, restart=not resumed)
        finished = [run for run, cell in enumerate(cells) if resumed and self._is_finished(cell)]
        trial = TrackedTrial(record.number, cells, self._site, opening, finished)
        self._trials[record.number] = trial
        self._board.began(record.number, record.point, trial.epochs)
        return trial.plan()

    def _fail(self, trial: TrackedTrial, failure: Failure) -> None:
        trial.fail(failure)
        self._study.fail(trial.number, f"{failure.reason}: {failure.message}")
        self._board.failed(trial.number, failure.message)

    def _finish(self, trial: TrackedTrial, score: float, steps: int) -> None:
        trial.done()
        self._study.settle(trial.number, steps, trial.scores)
        values = [score] if self._cost is None else [score, statistics.fmean(trial.costs)]
        self._study.finish(trial.number, values)
        self._board.finished(trial.number, score)
        best = self._board.best
        figures = {"search/score": score} | ({"search/best": best[1]} if best else {})
        self._site.log_figures(trial.number, figures)

    def _is_finished(self, cell: Cell) -> bool:
        run = look_up(partial(finished_run, self._site.store, cell))
        return run is not None and run.parent_run_id == self._site.opening.parent_run_id

    def _is_enough(self) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return True
        return sum(record.state != "repeated" for record in self._study.records()) >= self._config.trials

    def _combined(self, number: int, steps: int, scores: Sequence[float]) -> float:
        if len(self._tunables.data) > 1 and self._config.objective.combine == "mean_rank":
            others = (record for record in self._study.records() if record.number != number)
            return mean_rank(scores, [other.scores[steps] for other in others if steps in other.scores])
        return mean_normalised(scores, self._references)

    def _cells(self, record: Record) -> list[Cell]:
        return [
            self._tunables.cell(self._space.compose(record.point, benchmark), benchmark, seed, f"t{record.number:03d}")
            for benchmark in self._tunables.data
            for seed in self._config.seeds
        ]

    def _key(self, record: Record) -> tuple[str, ...] | None:
        try:
            return _key(self._cells(record))
        except UserError:
            return None


def _key(cells: Sequence[Cell]) -> tuple[str, ...]:
    return tuple(cell.config_hash for cell in cells)
