"""The course of a search: which trial is next, what its reports mean, when it is stopped, and what becomes of it.

Two directors serve Ray Tune. `SearchDirector` asks the study; `ListDirector` runs a list of runs to their ends, for the base's own scores and
for the comparison at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell, make_cell
from pipeline.train.cluster import Placement
from pipeline.train.failure import Failure
from pipeline.train.tracked import Opening, finished_run, patiently
from pipeline.trials.clerk import Clerk
from pipeline.trials.plan import Pool, TrialPlan, TrialReport

LARGEST_STREAK = 50
"""Proposals in a row that only repeat earlier trials, after which the space is taken for exhausted."""


@dataclass(frozen=True)
class Bench:
    """What all trials of a search share."""

    study_name: str
    parent_run_id: str
    store: TrackingStore
    data: Mapping[str | None, TuneData]
    """Benchmark, or None for the base's own → its tuning split; in the order in which a trial runs them."""
    data_root: Path
    storage: Path
    """Folder of run folders of this search."""
    pool: Pool
    clerk: Clerk

    @property
    def tune_folder(self) -> Path:
        """Ray Tune's own files, which are thrown away."""
        return self.storage / "tune"

    @property
    def placement(self) -> Placement:
        """Of each run."""
        return self.pool.placement

    def cell(self, composed: ComposedConfig, benchmark: str | None, seed: int, variant: str) -> Cell:
        """One run of a config."""
        found = replace(composed, config=resolve_weights(composed.config, self.data_root))
        return make_cell(found, seed, self.data[benchmark], None, variant)

    def track(self, number: int, cells: Sequence[Cell], resumed: bool) -> TrackedTrial:
        """Opens a trial's first run; of a resumed trial only what is not over yet."""
        finished = [run for run, cell in enumerate(cells) if resumed and self._is_finished(cell)]
        opening = Opening(self.study_name, self.parent_run_id, self.placement, anew=not resumed)
        return TrackedTrial(number, cells, self.store, opening, self.data_root, self.storage, self.clerk, finished)

    def log_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds figures to the search's own run, as soon as the clerk and the store have time."""
        log = partial(self.store.log_metrics, self.parent_run_id, step, figures, int(time.time() * 1000))
        self.clerk.do(partial(patiently, log))

    def _is_finished(self, cell: Cell) -> bool:
        run = finished_run(self.store, cell)
        return run is not None and run.parent_run_id == self.parent_run_id


class SearchDirector:
    """Runs the trials that the study proposes.

    Args:
        config: the search.
        study: its memory.
        space: from which it draws.
        bench: what trials share.
        references: the base's score on each benchmark, by which scores are divided where there are several.
        board: shows how it goes.
        deadline: `time.monotonic()` after which no new trial starts.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        space: Space,
        bench: Bench,
        references: Mapping[str | None, float],
        board: Board,
        deadline: float | None,
    ) -> None:
        self._config = config
        self._study = study
        self._space = space
        self._bench = bench
        self._references = [references[name] for name in bench.data for _ in config.seeds]
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
        _interrupt(self._trials.values(), self._bench.clerk, reason)

    def _begin(self, record: Record, cells: Sequence[Cell], *, resumed: bool) -> TrialPlan:
        trial = self._bench.track(record.number, cells, resumed)
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
        self._bench.log_figures(trial.number, figures)

    def _is_enough(self) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return True
        return sum(record.state != "repeated" for record in self._study.records()) >= self._config.trials

    def _combined(self, number: int, steps: int, scores: Sequence[float]) -> float:
        if len(self._bench.data) > 1 and self._config.objective.combine == "mean_rank":
            others = (record for record in self._study.records() if record.number != number)
            return mean_rank(scores, [other.scores[steps] for other in others if steps in other.scores])
        return mean_normalised(scores, self._references)

    def _cells(self, record: Record) -> list[Cell]:
        return [
            self._bench.cell(self._space.compose(record.point, benchmark), benchmark, seed, f"t{record.number:03d}")
            for benchmark in self._bench.data
            for seed in self._config.seeds
        ]

    def _key(self, record: Record) -> tuple[str, ...] | None:
        try:
            return _key(self._cells(record))
        except UserError:
            return None


def _key(cells: Sequence[Cell]) -> tuple[str, ...]:
    return tuple(cell.config_hash for cell in cells)


@dataclass(frozen=True)
class ListedRun:
    """One run of a list, and what it came to."""

    cell: Cell
    figures: dict[str, float] = field(default_factory=dict)
    """`val/…` of the epoch that counts; empty where it failed."""
    run_id: str = ""


class ListDirector:
    """Runs each cell of a list to its end; what was finished before is answered from the store.

    Args:
        cells: what is run.
        bench: what runs share.
        board: shows how it goes.
    """

    def __init__(self, cells: Sequence[Cell], bench: Bench, board: Board) -> None:
        self._bench = bench
        self._board = board
        self._waiting: list[int] = []
        self._trials: dict[int, TrackedTrial] = {}
        self.runs = [ListedRun(cell) for cell in cells]
        for number, cell in enumerate(cells):
            known = finished_run(bench.store, cell)
            if known is None:
                self._waiting.append(number)
            else:
                self.runs[number] = ListedRun(cell, _val(known.metrics), known.run_id)

    @property
    def is_needed(self) -> bool:
        """Whether anything is left to be run."""
        return bool(self._waiting)

    def next_trial(self) -> TrialPlan | None:
        if not self._waiting:
            return None
        number = self._waiting.pop(0)
        cell = self.runs[number].cell
        trial = self._bench.track(number, [cell], resumed=True)
        self._trials[number] = trial
        self._board.say(f"{cell.name}: begins")
        return trial.plan()

    def reported(self, number: int, report: TrialReport) -> bool:
        trial = self._trials[number]
        if report.failure is not None:
            trial.fail(Failure(**report.failure))
            self._board.say(f"error: {trial.cells[0].name}: {report.failure['message']}")
        elif report.checkpoint is not None:
            figures = _val(report.metrics)
            self.runs[number] = ListedRun(trial.cells[0], figures, trial.run_ids.get(0, ""))
            trial.run_finished(report)
            trial.done()
            self._board.say(f"{trial.cells[0].name}: AUSUC {figures['val/ausuc']:.3f}  H {figures['val/gzsl_h']:.3f}")
        return False

    def ended(self, number: int, error: str | None) -> None:
        trial = self._trials[number]
        if not trial.over:
            trial.fail(Failure("workers-lost", error or "the run ended without a result"))
            self._board.say(f"error: {trial.cells[0].name}: its workers were lost")

    def interrupted(self, reason: str) -> None:
        _interrupt(self._trials.values(), self._bench.clerk, reason)


def _interrupt(trials: Iterable[TrackedTrial], clerk: Clerk, reason: str) -> None:
    """Ends the open runs, which the next call resumes."""
    for trial in trials:
        if not trial.over:
            trial.kill(reason)
    clerk.finish()


def _val(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith("val/")}
