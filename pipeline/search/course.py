"""Course of a search on a ready cluster: scores of the base, trials, comparison of the best config with the base, report."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
from optuna.trial import TrialState

from mgmrn.errors import UserError
from pipeline.analysis.paired import paired_difference, summarise
from pipeline.config.compose import ComposedConfig, show
from pipeline.config.yaml_tree import yaml_value
from pipeline.search.config import SearchConfig
from pipeline.search.director import Search, SearchDirector, final_ranks
from pipeline.search.outcome import Comparison, SearchOutcome
from pipeline.search.space import Space
from pipeline.search.study import Record
from pipeline.spool import OnEpoch
from pipeline.train.cell import Cell
from pipeline.trials.list_director import ListDirector, Task
from pipeline.trials.runner import run_trials

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FRESH_SEEDS_FROM = 1000
"""First seed of the comparison; searches use small seeds."""
STYLE = "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"

Bases = Mapping[str | None, ComposedConfig]
"""Benchmark, or None for the base's own → the base's config on it."""


def run_course(search: Search, bases: Bases, name: str, budget_hours: float | None, tracking_uri: str) -> SearchOutcome:
    """Run the trials of the search called `name`, then compare the best with the base."""
    config, study, site, board = search.config, search.study, search.site, search.board
    deadline = None if budget_hours is None else time.monotonic() + 3600 * budget_hours
    with board.shown():
        for record in study.records():
            if record.state in ("finished", "stopped", "failed"):
                board.remember(record.number, record.point, record.state, record.values[0] if record.values else None)
        director = SearchDirector(search, _references(search, bases), deadline)
        run_trials(director, site.concurrency, site.tune_folder)
        best = best_record(config, study.records())
        comparisons = () if best is None else _compare(search, bases, best)
    shutil.rmtree(site.tune_folder, ignore_errors=True)
    records, report, title = study.records(), site.storage / "report", f"Search {name}"
    shares = write_study(report, study.optuna, records, title, config.objective.names)
    states = [record.state for record in records]
    return SearchOutcome(
        status="finished" if best else "failed",
        study=site.opening.study,
        trials={one: states.count(one) for one in ("finished", "stopped", "failed", "repeated") if one in states},
        best=None if best is None else {"trial": best.number, "values": list(best.values), "point": dict(best.point)},
        comparisons=comparisons,
        importances=shares,
        best_configs=() if best is None else _write_best(report, search.space, best, bases),
        parent_run_id=site.opening.parent_run_id,
        tracking_uri=tracking_uri,
    )


def best_record(config: SearchConfig, records: Sequence[Record]) -> Record | None:
    """Finished trial with the largest score; ranks are computed among all finished trials."""
    finished = [record for record in records if record.state == "finished" and record.values]
    if len(config.benchmarks) > 1 and config.objective.combine == "mean_rank":
        ranks = final_ranks({record.number: record.scores[max(record.scores)] for record in finished})
        return max(finished, key=lambda record: ranks[record.number], default=None)
    return max(finished, key=lambda record: record.values[0], default=None)


def _references(search: Search, bases: Bases) -> dict[str | None, float]:
    """Score of the base on each benchmark, where the scores of several are normalised; else 1."""
    objective = search.config.objective
    if len(bases) == 1 or objective.combine == "mean_rank":
        return dict.fromkeys(bases, 1.0)
    cells = [search.cell(base, name, search.config.seeds[0], "base") for name, base in bases.items()]
    figures = _run_cells(search, cells)
    scores = {
        name: figures[cell.identity].get(objective.metric_key, 0.0) for name, cell in zip(bases, cells, strict=True)
    }
    for name, score in scores.items():
        if score <= 0:
            raise UserError(
                f"the base scores nothing on {name}, so that scores cannot be brought to one scale",
                search.config.base,
                "see the errors above, or set objective.combine: mean_rank",
            )
    return scores


def _compare(search: Search, bases: Bases, best: Record) -> tuple[Comparison, ...]:
    """Best and base on every benchmark over fresh seeds, paired by seed."""
    config, key = search.config, search.config.objective.metric_key
    search.board.say(f"comparing trial {best.number} with the base over {config.confirm_seeds} fresh seeds")
    seeds = range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + config.confirm_seeds)
    winners = {name: search.space.compose(best.point, name) for name in bases}
    pairs = {
        name: [
            (search.cell(winners[name], name, seed, "best"), search.cell(base, name, seed, "base")) for seed in seeds
        ]
        for name, base in bases.items()
    }
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
    """Figures of each cell by its identity, empty where it failed; cells of one identity are run once.

    Ray Tune is started only where a cell was not finished before.
    """
    board, site = search.board, search.site

    def follow(cell: Cell) -> OnEpoch:
        board.say(f"{cell.name}: begins")

        def show_last(step: int, metrics: Mapping[str, float]) -> None:
            if step == metrics["epochs"]:
                board.say(f"{cell.name}: AUSUC {metrics['val/ausuc']:.3f}  H {metrics['val/gzsl_h']:.3f}")

        return show_last

    tasks = [Task(cell) for cell in {cell.identity: cell for cell in cells}.values()]
    director = ListDirector(tasks, site, board.say, follow)
    if director.take_known():
        run_trials(director, site.concurrency, site.tune_folder)
    return director.results


def _metrics(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Comparisons as metrics of the parent run."""
    metrics: dict[str, float | None] = {}
    for one in comparisons:
        prefix = f"confirm/{one.benchmark}/" if len(comparisons) > 1 else "confirm/"
        for variant, summary in (("best", one.best), ("base", one.base)):
            if summary is not None:
                metrics |= {f"{prefix}{variant}/{name}": getattr(summary, name) for name in ("mean", "std", "n")}
        if one.difference is not None:
            metrics |= {f"{prefix}difference/{name}": getattr(one.difference, name) for name in ("mean", "low", "high")}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _write_best(report: Path, space: Space, best: Record, bases: Bases) -> tuple[str, ...]:
    """Write the best config, one file per benchmark; returns their paths."""
    paths = []
    for name in bases:
        path = report / ("best.yaml" if len(bases) == 1 else f"best-{name}.yaml")
        header = f"# The best of a search (trial {best.number}), chosen on the tune split.\n"
        path.write_text(header + show(space.compose(best.point, name)), encoding="utf-8")
        paths.append(str(path))
    return tuple(paths)


def write_study(
    folder: Path, study: optuna.Study, records: Sequence[Record], title: str, targets: Sequence[str]
) -> dict[str, float]:
    """Write `trials.csv`, `importances.json` and `study.html`; returns the importances.

    `targets` are the names of the objectives, the score first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_trials(folder / "trials.csv", records, targets)
    shares = importances(study)
    (folder / "importances.json").write_text(json.dumps(shares, indent=1))
    (folder / "study.html").write_text(_page(study, title, targets), encoding="utf-8")
    return shares


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the score's variance that each parameter explains (fANOVA); empty where no two finished trials differ.

    Parameters that some finished trials lack are left out.
    """
    if len({_score(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=_fanova(), target=_score)
    except (ValueError, RuntimeError):
        return {}
    return {path: float(share) for path, share in found.items()}


def _fanova() -> optuna.importance.BaseImportanceEvaluator:
    """Evaluator of importances; Optuna's default, PED-ANOVA, would minimise the score beside a second objective."""
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _score(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _write_trials(path: Path, records: Sequence[Record], targets: Sequence[str]) -> None:
    paths = sorted({name for record in records for name in record.point})
    rows = [
        {"trial": record.number, "state": record.state, "steps": max(record.scores, default=0), "reason": record.reason}
        | dict(zip(targets, record.values, strict=False))
        | {name: yaml_value(value) for name, value in record.point.items()}
        for record in records
    ]
    table = pd.DataFrame(rows, columns=["trial", "state", *targets, "steps", *paths, "reason"])
    table.to_csv(path, index=False, lineterminator="\n")


def _page(study: optuna.Study, title: str, targets: Sequence[str]) -> str:
    parts: list[str] = []
    library: bool = True  # Plotly's script stands before the first plot, so that the page opens without a network.
    for name, draw in _plots(targets).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plot = draw(study).to_html(full_html=False, include_plotlyjs=library)
            library = False
        except (ValueError, RuntimeError) as error:
            plot = f"<p>Cannot be drawn: {escape(str(error))}</p>"
        parts.append(f"<h2>{escape(name)}</h2>{plot}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"{head}<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>"


def _plots(targets: Sequence[str]) -> dict[str, Callable[[optuna.Study], Figure]]:
    """Heading → function that draws the plot."""
    draw = optuna.visualization
    of_score: dict[str, Any] = {"target": _score, "target_name": targets[0]}
    plots: dict[str, Callable[[optuna.Study], Figure]] = {
        "Parameter importances": partial(draw.plot_param_importances, evaluator=_fanova(), **of_score),
        "Parallel coordinates": partial(draw.plot_parallel_coordinate, **of_score),
        "Slices": partial(draw.plot_slice, **of_score),
    }
    if len(targets) > 1:
        return {"Pareto front": draw.plot_pareto_front} | plots
    history = partial(draw.plot_optimization_history, **of_score)
    return {"Optimisation history": history} | plots | {"Curves of the trials": draw.plot_intermediate_values}
