"""Director of the trials of a search: which is next, when one is stopped, and what is recorded."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mgmrn.data.splits import TuneData
from mgmrn.errors import UserError
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.search.board import Board
from pipeline.search.config import SearchConfig
from pipeline.search.space import Space
from pipeline.search.study import Record, Study
from pipeline.train.cell import Cell, make_cell
from pipeline.train.messages import Failure
from pipeline.train.tracked import look_up
from pipeline.trials.director import Director, Site, TrackedTrial
from pipeline.trials.trial import TrialPlan, TrialReport

LARGEST_STREAK = 50
"""Proposals in a row that repeat earlier trials, after which the space counts as exhausted."""


@dataclass(frozen=True)
class Search:
    """Parts that all trials of a search share."""

    config: SearchConfig
    space: Space
    bases: Mapping[str | None, ComposedConfig]
    """Benchmark, or None for the base's own → the base's config on it."""
    study: Study
    site: Site
    data: Mapping[str | None, TuneData]
    """Benchmark, or None for the base's own → its tuning split; in the order in which a trial runs them."""
    board: Board

    def cell(self, composed: ComposedConfig, benchmark: str | None, seed: int, variant: str) -> Cell:
        resolved = replace(composed, config=resolve_weights(composed.config, self.site.opening.where.data_root))
        return make_cell(resolved, seed, self.data[benchmark], None, variant)


class SearchDirector(Director):
    """Director of the trials that a study proposes; scores are divided by `references`, and none starts after the `deadline`."""

    def __init__(self, search: Search, references: Mapping[str | None, float], deadline: float | None) -> None:
        super().__init__(search.site)
        self._search = search
        self._study, self._board = search.study, search.board
        self._references = [references[name] for name in search.data for _ in search.config.seeds]
        self._deadline = deadline
        self._left = [record for record in search.study.records() if record.state == "running"]
        """Trials that a dead driver left."""
        self._twins: dict[tuple[str, ...], int] = {}
        """First trial with each list of config hashes."""
        for record in search.study.records():
            if record.state not in ("failed", "repeated"):
                with suppress(UserError):
                    self._twins.setdefault(_hashes(self._cells(record)), record.number)

    def next_trial(self) -> TrialPlan | None:
        streak = 0
        while True:
            is_resumed = bool(self._left)
            is_over = self._deadline is not None and time.monotonic() >= self._deadline
            is_enough = is_over or self._study.size >= self._search.config.trials or streak >= LARGEST_STREAK
            if is_enough and not is_resumed:
                return None
            record = self._left.pop(0) if is_resumed else self._study.propose()
            try:
                cells = self._cells(record)
            except UserError as error:
                self._study.end(record.number, "failed", reason=f"bad-input: {error}")
                self._board.ended(record.number, "failed", None, str(error))
                continue
            twin = self._twins.setdefault(_hashes(cells), record.number)
            if twin == record.number:
                return self._begin(record, cells, is_resumed)
            self._study.repeat(record.number, twin)
            streak += 1

    def record(self, trial: TrackedTrial, report: TrialReport) -> bool:
        objective = self._search.config.objective
        percent = 100 * report.steps // trial.epochs
        trial.scores[report.run :] = [report.metrics[objective.metric_key]]
        score = self._combined(trial.number, percent, trial.scores)
        if report.checkpoint is not None:
            if objective.cost != "none":
                trial.costs[report.run :] = [report.metrics[f"perf/{objective.cost}"]]
            trial.finish_run(report)
            if report.run + 1 == len(trial.cells):
                self._study.settle(trial.number, percent, trial.scores)
                self._end(trial, "finished", score)
                best = {"search/best": self._board.best[0]} if self._board.best else {}
                self.site.log_figures(trial.number, {"search/score": score} | best)
            return False
        self._board.epoch(trial.number, report.steps, score)
        stop = self._study.report(trial.number, percent, score, trial.scores)
        if not stop or report.steps >= trial.epochs:  # The last epoch is over: stopping would save nothing.
            return False
        trial.kill("stopped early")
        self._end(trial, "stopped", score)
        return True

    def _begin(self, record: Record, cells: Sequence[Cell], is_resumed: bool) -> TrialPlan:
        opening = replace(self.site.opening, restart=not is_resumed)
        finished = [run for run, cell in enumerate(cells) if is_resumed and self._is_finished(cell)]
        trial = TrackedTrial(record.number, cells, self.site.clerk, opening, finished)
        self.trials[record.number] = trial
        self._board.began(record.number, record.point, trial.epochs)
        return trial.plan

    def fail(self, trial: TrackedTrial, failure: Failure) -> None:
        trial.fail(failure)
        self.site.clerk.wait()
        self._study.end(trial.number, "failed", reason=f"{failure.reason}: {failure.message}")
        self._board.ended(trial.number, "failed", None, failure.message)

    def _end(self, trial: TrackedTrial, state: Literal["finished", "stopped"], score: float) -> None:
        # A trial that has ended in the study is not resumed, so that its run must have its end before.
        self.site.clerk.wait()
        costs = [statistics.fmean(trial.costs)] if trial.costs else []
        self._study.end(trial.number, state, [score, *costs] if state == "finished" else None)
        self._board.ended(trial.number, state, score)

    def _is_finished(self, cell: Cell) -> bool:
        run = look_up(partial(self.site.opening.store.find_finished, cell.config_hash, cell.split))
        return run is not None and run.parent_run_id == self.site.opening.parent.run_id

    def _combined(self, number: int, percent: int, scores: Sequence[float]) -> float:
        if len(self._search.data) > 1 and self._search.config.objective.combine == "mean_rank":
            others = (_latest(record, percent) for record in self._study.records() if record.number != number)
            return mean_rank(scores, [other for other in others if other])
        return statistics.fmean(score / reference for score, reference in zip(scores, self._references, strict=False))

    def _cells(self, record: Record) -> list[Cell]:
        """Runs of a trial; raises a `UserError` when its values do not compose."""
        return [
            self._search.cell(self._search.space.compose(record.point, name), name, seed, f"t{record.number:03d}")
            for name in self._search.data
            for seed in self._search.config.seeds
        ]


def _latest(record: Record, percent: int) -> Sequence[float]:
    """Scores of a trial when it had run a percent of its epochs; none where it has not come so far."""
    reached = [reported for reported in record.scores if reported <= percent]
    return record.scores[max(reached)] if reached and max(record.scores) >= percent else ()


def _hashes(cells: Sequence[Cell]) -> tuple[str, ...]:
    return tuple(cell.config_hash for cell in cells)


def mean_rank(scores: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Mean over the runs begun so far of the share of other trials with that run that score less there, a tie counting half."""
    return statistics.fmean(
        _share_below(score, [other[run] for other in others if run < len(other)]) for run, score in enumerate(scores)
    )


def final_ranks(scores: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Mean rank of every finished trial among all of them, by the trial's number."""
    return {
        number: mean_rank(own, [other for name, other in scores.items() if name != number])
        for number, own in scores.items()
    }


def _share_below(score: float, others: Sequence[float]) -> float:
    if not others:
        return 0.5
    return (sum(other < score for other in others) + 0.5 * sum(other == score for other in others)) / len(others)
