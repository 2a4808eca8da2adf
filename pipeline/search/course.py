"""The course of a search once it is known what is to be done and where: the base's own scores, the trials, the comparison, the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mgmrn.errors import UserError
from pipeline.config.compose import ComposedConfig, show
from pipeline.redaction import redact
from pipeline.search.board import Board
from pipeline.search.compare import compare, run_cells
from pipeline.search.config import SearchConfig
from pipeline.search.director import SearchDirector, Tunables
from pipeline.search.objective import METRIC_KEYS, final_ranks
from pipeline.search.report import write_study
from pipeline.search.request import Comparison, SearchOutcome, SearchRequest
from pipeline.search.space import Space
from pipeline.search.study import Record, Study
from pipeline.trials.runner import run_trials
from pipeline.trials.site import Site


def run_course(
    request: SearchRequest,
    config: SearchConfig,
    study: Study,
    space: Space,
    site: Site,
    tunables: Tunables,
    bases: Mapping[str | None, ComposedConfig],
) -> SearchOutcome:
    """Trials, then the winner against the base."""
    metric = config.objective.metric.upper()
    deadline = None if request.budget_hours is None else time.monotonic() + 3600 * request.budget_hours
    with Board(request.search.name, config.trials, metric) as board:
        for record in study.records():
            if record.state in ("finished", "stopped", "failed"):
                board.remember(record.number, record.point, record.state, record.values[0] if record.values else None)
        references = _references(config, site, tunables, bases, board)
        run_trials(
            SearchDirector(config, study, space, site, tunables, references, board, deadline),
            site.pool,
            site.tune_folder,
        )
        best = best_record(config, study.records())
        comparisons: tuple[Comparison, ...] = ()
        if best is not None:
            comparisons = compare(config, space, site, tunables, bases, best, board)
    shutil.rmtree(site.tune_folder, ignore_errors=True)
    report = site.storage / "report"
    targets = [config.objective.metric] + ([] if config.objective.cost == "none" else [config.objective.cost])
    shares = write_study(report, study.optuna, study.records(), f"Search {request.search.name}", targets)
    best_configs = () if best is None else _write_best(report, space, best, bases)
    return SearchOutcome(
        status="finished" if best else "failed",
        study=site.opening.study,
        trials=_counts(study.records()),
        best=None if best is None else {"trial": best.number, "values": list(best.values), "point": dict(best.point)},
        comparisons=comparisons,
        importances=shares,
        best_configs=best_configs,
        parent_run_id=site.opening.parent_run_id,
        tracking_uri=redact(request.where.tracking_uri),
    )


def best_record(config: SearchConfig, records: Sequence[Record]) -> Record | None:
    """The finished trial with the largest score, ranks being worked out anew among all finished trials."""
    finished = [record for record in records if record.state == "finished" and record.values]
    if not finished:
        return None
    if len(config.benchmarks) > 1 and config.objective.combine == "mean_rank":
        ranks = final_ranks({record.number: record.scores[max(record.scores)] for record in finished})
        return max(finished, key=lambda record: ranks[record.number])
    return max(finished, key=lambda record: record.values[0])


def _references(
    config: SearchConfig,
    site: Site,
    tunables: Tunables,
    bases: Mapping[str | None, ComposedConfig],
    board: Board,
) -> dict[str | None, float]:
    """The base's own score on each benchmark, where several are to be brought to one scale; else 1."""
    if len(bases) == 1 or config.objective.combine == "mean_rank":
        return dict.fromkeys(bases, 1.0)
    cells = [tunables.cell(base, name, config.seeds[0], "base") for name, base in bases.items()]
    scores = {}
    for name, figures in zip(bases, run_cells(cells, site, board), strict=True):
        score = figures.get(METRIC_KEYS[config.objective.metric], 0.0)
        if score <= 0:
            raise UserError(
                f"the base scores nothing on {name}, so that scores cannot be brought to one scale",
                config.base,
                "see the errors above, or set objective.combine: mean_rank",
            )
        scores[name] = score
    return scores


def _write_best(
    report: Path, space: Space, best: Record, bases: Mapping[str | None, ComposedConfig]
) -> tuple[str, ...]:
    """The winner's full config, one file per benchmark; returns their paths."""
    paths = []
    for name in bases:
        path = report / ("best.yaml" if len(bases) == 1 else f"best-{name}.yaml")
        header = f"# The best of a search (trial {best.number}), chosen on the tune split.\n"
        path.write_text(header + show(space.compose(best.point, name)), encoding="utf-8")
        paths.append(str(path))
    return tuple(paths)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    states = [record.state for record in records]
    return {state: states.count(state) for state in ("finished", "stopped", "failed", "repeated") if state in states}
