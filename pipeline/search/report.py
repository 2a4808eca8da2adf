"""Report of a study: a table of its trials, importances, and a page of Optuna's plots that opens without a network."""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from markupsafe import Markup
from optuna.trial import TrialState
from plotly.graph_objects import Figure

from pipeline.analysis.page.templates import page_template
from pipeline.config.yaml_tree import yaml_value
from pipeline.search.study import Record


def write_study(
    folder: Path, study: optuna.Study, records: Sequence[Record], title: str, targets: Sequence[str]
) -> dict[str, float]:
    """Write `trials.csv`, `importances.json` and `study.html`; returns the importances. `targets` names the objectives."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_trials(folder / "trials.csv", records, targets)
    shares = importances(study)
    (folder / "importances.json").write_text(json.dumps(shares, indent=1))
    (folder / "study.html").write_text(_page(study, title, targets), encoding="utf-8")
    return shares


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the score's variance that each parameter of all finished trials explains (fANOVA); empty where no two differ."""
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
        {
            "trial": record.number,
            "state": record.state,
            "percent": max(record.scores, default=0),
            "reason": record.reason,
        }
        | dict(zip(targets, record.values, strict=False))
        | {name: yaml_value(value) for name, value in record.point.items()}
        for record in records
    ]
    table = pd.DataFrame(rows, columns=["trial", "state", *targets, "percent", *paths, "reason"])
    table.to_csv(path, index=False, lineterminator="\n")


def _page(study: optuna.Study, title: str, targets: Sequence[str]) -> str:
    shown: dict[str, str] = {}
    library: bool = True  # Plotly's script stands before the first plot, so that the page opens without a network.
    for heading, draw in _plots(targets).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shown[heading] = Markup(draw(study).to_html(full_html=False, include_plotlyjs=library))
            library = False
        except (ValueError, RuntimeError) as error:
            shown[heading] = f"Cannot be drawn: {error}"
    return page_template(Path(__file__).with_name("study.html.j2")).render(title=title, plots=shown)


def _plots(targets: Sequence[str]) -> dict[str, Callable[[optuna.Study], Figure]]:
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
