"""The winner beside the base over seeds that the search has not seen: the figures of a search that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.analysis.paired import paired_difference, summarise
from pipeline.config.compose import ComposedConfig
from pipeline.search.board import Board
from pipeline.search.config import SearchConfig
from pipeline.search.director import Tunables
from pipeline.search.objective import METRIC_KEYS
from pipeline.search.request import Comparison
from pipeline.search.space import Space
from pipeline.search.study import Record
from pipeline.spool import OnEpoch
from pipeline.train.cell import Cell
from pipeline.trials.list_director import ListDirector, Task
from pipeline.trials.runner import run_trials
from pipeline.trials.site import Site

FRESH_SEEDS_FROM = 1000
"""Searches use small seeds."""


def compare(
    config: SearchConfig,
    space: Space,
    site: Site,
    tunables: Tunables,
    bases: Mapping[str | None, ComposedConfig],
    best: Record,
    board: Board,
) -> tuple[Comparison, ...]:
    """Best and base on every benchmark over fresh seeds, paired by seed; a winner that is the base is trained once."""
    board.say(f"comparing trial {best.number} with the base over {config.confirm_seeds} fresh seeds")
    seeds = range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + config.confirm_seeds)
    variants = [
        (tunables.cell(base, name, seed, "base"), tunables.cell(space.compose(best.point, name), name, seed, "best"))
        for name, base in bases.items()
        for seed in seeds
    ]
    # By science, not by name: what is the same is run once.
    cells = {cell.identity: cell for pair in variants for cell in reversed(pair)}
    figures_of = dict(zip(cells, run_cells(list(cells.values()), site, board), strict=True))
    key = METRIC_KEYS[config.objective.metric]
    comparisons = []
    for position, name in enumerate(bases):
        pairs = variants[len(seeds) * position : len(seeds) * (position + 1)]
        scores = [[figures_of[cell.identity].get(key) for cell in pair] for pair in pairs]
        theirs = [base for base, _ in scores if base is not None]
        ours = [best_score for _, best_score in scores if best_score is not None]
        both = [(best_score, base) for base, best_score in scores if base is not None and best_score is not None]
        is_base = all(base.identity == winner.identity for base, winner in pairs)
        comparisons.append(
            Comparison(
                benchmark=tunables.data[name].benchmark,
                metric=key,
                best=summarise(ours) if ours else None,
                base=summarise(theirs) if theirs else None,
                difference=paired_difference(*zip(*both, strict=True)) if both and not is_base else None,
                is_base=is_base,
            )
        )
    site.log_figures(0, _figures(comparisons))
    return tuple(comparisons)


def run_cells(cells: Sequence[Cell], site: Site, board: Board) -> list[Mapping[str, float]]:
    """Figures of each cell, in their order, empty where it failed; Ray Tune is started only where one was not finished before."""

    def follow(cell: Cell) -> OnEpoch:
        board.say(f"{cell.name}: begins")

        def told(step: int, metrics: Mapping[str, float]) -> None:
            if step == metrics["epochs"]:
                board.say(f"{cell.name}: AUSUC {metrics['val/ausuc']:.3f}  H {metrics['val/gzsl_h']:.3f}")

        return told

    director = ListDirector([Task(cell) for cell in cells], site, board.say, follow)
    if director.take_known():
        run_trials(director, site.pool, site.tune_folder)
    return [director.results[cell.identity].metrics for cell in cells]


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
