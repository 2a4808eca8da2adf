"""Course of a search on a ready cluster: scores of the base, trials, comparison of the best config with the base, report."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mgmrn.errors import UserError
from pipeline.analysis.paired import paired_difference, summarise
from pipeline.config.compose import show
from pipeline.search.config import SearchConfig
from pipeline.search.director import Search, SearchDirector, final_ranks
from pipeline.search.outcome import Comparison, SearchOutcome
from pipeline.search.report import write_study
from pipeline.search.study import Record
from pipeline.spool import OnEpoch
from pipeline.train.cell import Cell
from pipeline.trials.known import KnownRuns
from pipeline.trials.list_director import ListDirector, Task
from pipeline.trials.runner import run_trials

FRESH_SEEDS_FROM = 1000
"""First seed of the comparison; searches use small seeds."""


def run_course(search: Search, name: str, budget_hours: float | None, tracking_uri: str) -> SearchOutcome:
    """Run the trials of the search called `name`, then compare the best with the base."""
    config, study, site, board = search.config, search.study, search.site, search.board
    deadline = None if budget_hours is None else time.monotonic() + 3600 * budget_hours
    with board.shown():
        for record in study.records():
            if record.state in ("finished", "stopped", "failed"):
                board.remember(record.number, record.point, record.state, record.values[0] if record.values else None)
        director = SearchDirector(search, _references(search), deadline)
        run_trials(director)
        best = best_record(config, study.records())
        comparisons = () if best is None else compare_with_base(search, best)
    records, stored = study.records(), site.storage / "report"
    with stored.filled() as report:
        shares = write_study(report, study.optuna, records, f"Search {name}", config.objective.names)
        files = () if best is None else _write_best(search, best, report)
    states = [record.state for record in records]
    return SearchOutcome(
        status="finished" if best else "failed",
        study=site.opening.study,
        trials={one: states.count(one) for one in ("finished", "stopped", "failed", "repeated") if one in states},
        best=None if best is None else {"trial": best.number, "values": list(best.values), "point": dict(best.point)},
        comparisons=comparisons,
        importances=shares,
        best_configs=tuple(str(stored / file) for file in files),
        parent_run_id=site.opening.parent.run_id,
        tracking_uri=tracking_uri,
    )


def best_record(config: SearchConfig, records: Sequence[Record]) -> Record | None:
    """Finished trial with the largest score; ranks are computed among all finished trials."""
    finished = [record for record in records if record.state == "finished" and record.values]
    if len(config.benchmarks) > 1 and config.objective.combine == "mean_rank":
        ranks = final_ranks({record.number: record.scores[max(record.scores)] for record in finished})
        return max(finished, key=lambda record: ranks[record.number], default=None)
    return max(finished, key=lambda record: record.values[0], default=None)


def _references(search: Search) -> dict[str | None, float]:
    """Score of the base on each benchmark, where the scores of several are normalised; else 1."""
    objective, bases = search.config.objective, search.bases
    if len(bases) == 1 or objective.combine == "mean_rank":
        return dict.fromkeys(bases, 1.0)
    cells = [search.cell(base, name, search.config.seeds[0], "base") for name, base in bases.items()]
    figures = _run_cells(search, cells)
    scores = dict(zip(bases, (figures[cell.identity].get(objective.metric_key, 0.0) for cell in cells), strict=True))
    for name, score in scores.items():
        if score <= 0:
            message = f"the base scores nothing on {name}, so that scores cannot be brought to one scale"
            hint = "see the errors above, or set objective.combine: mean_rank"
            raise UserError(message, search.config.base, hint)
    return scores


def compare_with_base(search: Search, best: Record) -> tuple[Comparison, ...]:
    """Best and base on every benchmark over fresh seeds, paired by seed."""
    config, key = search.config, search.config.objective.metric_key
    search.board.say(f"comparing trial {best.number} with the base over {config.confirm_seeds} fresh seeds")
    seeds = range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + config.confirm_seeds)
    pairs: dict[str | None, list[tuple[Cell, Cell]]] = {}
    for name, base in search.bases.items():
        winner = search.space.compose(best.point, name)
        pairs[name] = [
            (search.cell(winner, name, seed, "best"), search.cell(base, name, seed, "base")) for seed in seeds
        ]
    figures = _run_cells(search, [cell for found in pairs.values() for pair in found for cell in pair])
    comparisons = []
    for name, found in pairs.items():
        scores = [tuple(figures[cell.identity].get(key) for cell in pair) for pair in found]
        ours, theirs = ([score for score in one if score is not None] for one in zip(*scores, strict=True))
        both = [(one, other) for one, other in scores if one is not None and other is not None]
        is_base = all(winner.identity == base.identity for winner, base in found)
        comparisons.append(
            Comparison(
                benchmark=search.data[name].benchmark,
                metric=key,
                best=summarise(ours) if ours else None,
                base=summarise(theirs) if theirs else None,
                difference=paired_difference(*zip(*both, strict=True)) if both and not is_base else None,
                is_base=is_base,
            )
        )
    search.site.log_figures(0, _metrics(comparisons))
    return tuple(comparisons)


def _run_cells(search: Search, cells: Sequence[Cell]) -> Mapping[str, Mapping[str, float]]:
    """Figures of each cell by its identity, empty where it failed; Ray Tune is started where a cell was not finished before."""
    board, site = search.board, search.site

    def follow(cell: Cell) -> OnEpoch:
        board.say(f"{cell.name}: begins")

        def show_last(step: int, metrics: Mapping[str, float]) -> None:
            if step == metrics["epochs"]:
                board.say(f"{cell.name}: AUSUC {metrics['val/ausuc']:.3f}  H {metrics['val/gzsl_h']:.3f}")

        return show_last

    tasks = [Task(cell) for cell in {cell.identity: cell for cell in cells}.values()]
    known = partial(KnownRuns.of_cell, site.opening.store)
    director = ListDirector(tasks, site, known=known, say=board.say, on_epoch=follow)
    if director.take_known():
        run_trials(director)
    return {identity: summary.metrics for identity, summary in director.summaries.items()}


def _metrics(comparisons: Sequence[Comparison]) -> dict[str, float]:
    metrics: dict[str, float | None] = {}
    for one in comparisons:
        prefix = f"confirm/{one.benchmark}/" if len(comparisons) > 1 else "confirm/"
        for variant, summary in (("best", one.best), ("base", one.base)):
            if summary is not None:
                metrics |= {f"{prefix}{variant}/{name}": getattr(summary, name) for name in ("mean", "std", "n")}
        if one.difference is not None:
            metrics |= {f"{prefix}difference/{name}": getattr(one.difference, name) for name in ("mean", "low", "high")}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _write_best(search: Search, best: Record, report: Path) -> tuple[str, ...]:
    """Writes the best config on every benchmark; returns the names of the files."""
    files = {name: "best.yaml" if len(search.bases) == 1 else f"best-{name}.yaml" for name in search.bases}
    for name, file in files.items():
        header = f"# The best of a search (trial {best.number}), chosen on the tune split.\n"
        (report / file).write_text(header + show(search.space.compose(best.point, name)), encoding="utf-8")
    return tuple(files.values())
