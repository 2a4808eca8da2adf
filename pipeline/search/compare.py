"""The winner beside the base over seeds that the search has not seen: the figures of a search that count."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pipeline.analysis.paired import paired_difference, summarise
from pipeline.compose import ComposedConfig
from pipeline.search.board import Board
from pipeline.search.config import SearchConfig
from pipeline.search.director import Bench, ListDirector, ListedRun
from pipeline.search.objective import METRIC_KEYS
from pipeline.search.request import Comparison
from pipeline.search.runner import run_trials
from pipeline.search.space import Space
from pipeline.search.study import Record
from pipeline.train.cell import Cell

FRESH_SEEDS_FROM = 1000
"""Searches use small seeds."""


def compare(
    config: SearchConfig,
    space: Space,
    bench: Bench,
    bases: Mapping[str | None, ComposedConfig],
    best: Record,
    board: Board,
) -> tuple[Comparison, ...]:
    """Best and base on every benchmark over fresh seeds, paired by seed."""
    board.say(f"comparing trial {best.number} with the base over {config.confirm_seeds} fresh seeds")
    seeds = range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + config.confirm_seeds)
    cells = [
        bench.cell(composed, name, seed, variant)
        for name, base in bases.items()
        for seed in seeds
        for variant, composed in (("best", space.compose(best.point, name)), ("base", base))
    ]
    listed = run_cells(cells, bench, board)
    key = METRIC_KEYS[config.objective.metric]
    comparisons = []
    for position, name in enumerate(bases):
        runs = listed[2 * len(seeds) * position : 2 * len(seeds) * (position + 1)]
        pairs = [
            (first.figures[key], second.figures[key])
            for first, second in zip(runs[::2], runs[1::2], strict=True)
            if first.figures and second.figures
        ]
        ours = [run.figures[key] for run in runs[::2] if run.figures]
        theirs = [run.figures[key] for run in runs[1::2] if run.figures]
        comparisons.append(
            Comparison(
                benchmark=bench.data[name].benchmark,
                metric=key,
                best=summarise(ours) if ours else None,
                base=summarise(theirs) if theirs else None,
                difference=paired_difference(*zip(*pairs, strict=True)) if pairs else None,
            )
        )
    figures = _figures(comparisons)
    bench.clerk.do(lambda: bench.store.log_metrics(bench.parent_run_id, 0, figures, int(time.time() * 1000)))
    return tuple(comparisons)


def run_cells(cells: Sequence[Cell], bench: Bench, board: Board) -> list[ListedRun]:
    """What each cell comes to, in their order; Ray Tune is started only where one was not finished before."""
    director = ListDirector(cells, bench, board)
    if director.is_needed:
        run_trials(director, bench.pool, bench.tune_folder)
    return director.runs


def _figures(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """The comparison as metrics of the parent."""
    figures: dict[str, float] = {}
    for one in comparisons:
        prefix = f"{one.benchmark}/" if len(comparisons) > 1 else ""
        for variant, summary in (("best", one.best), ("base", one.base)):
            if summary is not None:
                figures[f"confirm/{prefix}{variant}/mean"] = summary.mean
                figures[f"confirm/{prefix}{variant}/n"] = float(summary.n)
                if summary.std is not None:
                    figures[f"confirm/{prefix}{variant}/std"] = summary.std
        if one.difference is not None:
            figures[f"confirm/{prefix}difference/mean"] = one.difference.mean
            if one.difference.low is not None and one.difference.high is not None:
                figures[f"confirm/{prefix}difference/low"] = one.difference.low
                figures[f"confirm/{prefix}difference/high"] = one.difference.high
    return figures
