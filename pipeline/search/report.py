"""Report of a search: table of trials, parameter importances, and Optuna's plots on one page that needs no network."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from pipeline.config.yaml_tree import yaml_value
from pipeline.search.study import Record

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def write_study(
    folder: Path, study: optuna.Study, records: Sequence[Record], title: str, targets: Sequence[str]
) -> dict[str, float]:
    """Writes `trials.csv`, `importances.json` and `study.html`.

    Args:
        folder: made where it is missing.
        study: for the plots.
        records: the trials.
        title: title of the page.
        targets: names of the objectives, the score first.

    Returns:
        The importances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_trials(folder / "trials.csv", records, targets)
    shares = importances(study, len(targets))
    (folder / "importances.json").write_text(json.dumps(shares, indent=1))
    (folder / "study.html").write_text(_page(study, title, targets), encoding="utf-8")
    return shares


def importances(study: optuna.Study, objectives: int = 1) -> dict[str, float]:
    """Share of the score's variance that each parameter explains (fANOVA); empty where no two finished trials differ.

    Parameters that not every finished trial has are left out.
    """
    if len({_first(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = None if objectives == 1 else _first
            return {
                key: float(value)
                for key, value in optuna.importance.get_param_importances(
                    study, evaluator=_fanova(), target=target
                ).items()
            }
    except (ValueError, RuntimeError):
        return {}


def _fanova() -> optuna.importance.BaseImportanceEvaluator:
    """Not Optuna's own choice, PED-ANOVA, which takes a second objective's score for one to be small."""
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _first(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _write_trials(path: Path, records: Sequence[Record], targets: Sequence[str]) -> None:
    paths = sorted({name for record in records for name in record.point})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *targets, "steps", *paths, "reason"])
        for record in records:
            values = [*record.values, *[""] * (len(targets) - len(record.values))]
            point = [yaml_value(record.point[name]) if name in record.point else "" for name in paths]
            steps = max(record.scores, default=0)
            writer.writerow([record.number, record.state, *values, steps, *point, record.reason])


def _page(study: optuna.Study, title: str, targets: Sequence[str]) -> str:
    from html import escape

    parts = []
    for name, draw in _plots(len(targets)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = draw(study)
        except (ValueError, RuntimeError) as error:
            parts.append(f"<h2>{escape(name)}</h2><p>Cannot be drawn: {escape(str(error))}</p>")
            continue
        # The library is put in once, so that the page is whole and opens without a network.
        library: Any = not any("<script" in part for part in parts)
        parts.append(f"<h2>{escape(name)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=library))
    style = "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    return f"{head}<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>"


def _plots(objectives: int) -> list[tuple[str, Callable[[optuna.Study], Figure]]]:
    draw = optuna.visualization
    if objectives > 1:
        return [
            ("Pareto front", draw.plot_pareto_front),
            (
                "Importance for the score",
                lambda study: draw.plot_param_importances(study, _fanova(), target=_first, target_name="score"),
            ),
            (
                "Parallel coordinates",
                lambda study: draw.plot_parallel_coordinate(study, target=_first, target_name="score"),
            ),
            ("Slices", lambda study: draw.plot_slice(study, target=_first, target_name="score")),
        ]
    return [
        ("Optimisation history", draw.plot_optimization_history),
        ("Parameter importances", lambda study: draw.plot_param_importances(study, _fanova())),
        ("Parallel coordinates", draw.plot_parallel_coordinate),
        ("Slices", draw.plot_slice),
        ("Curves of the trials", draw.plot_intermediate_values),
    ]
