"""The files that a finished run carries: evaluation tables and plots, the resolved config, the environment."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float, Int

from mgmrn.metrics import calibrated_predictions, per_class_accuracy, seen_unseen_curve
from mgmrn.protocol import Evaluation
from pipeline.config.compose import ComposedConfig, show
from pipeline.redaction import redact
from pipeline.tracking.environment import GitState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_PLOTTED_CONFUSION = 60
"""Classes; beyond, a picture shows nothing."""
LARGEST_PLAIN_TABLE = 5000
"""Rows; a longer table of predictions is compressed."""


@dataclass(frozen=True)
class EvaluationNames:
    """What the indices of an evaluation stand for."""

    classes: Sequence[str]
    """Of the U classes that the scores are over, in their order."""
    images: Mapping[int, str]
    """By the evaluation's ids."""


def write_evaluation(folder: Path, evaluation: Evaluation, names: EvaluationNames) -> None:
    """Writes `eval/`: curve, per-class table, confusion and per-image predictions at the evaluation's γ."""
    target = folder / "eval"
    target.mkdir(parents=True, exist_ok=True)
    answers = _answers(evaluation)
    _write_curve(target, evaluation)
    _write_per_class(target / "per_class.csv", evaluation, names, answers)
    _write_confusion(target, evaluation, names, answers)
    _write_predictions(target, evaluation, names, answers)


def write_provenance(folder: Path, composed: ComposedConfig, environment: dict[str, Any], git: GitState) -> None:
    """Writes `config/resolved.yaml`, with every value's origin, and `env/`: machine, git state, what is uncommitted.

    Addresses in them are without their passwords.
    """
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "env").mkdir(exist_ok=True)
    (folder / "config" / "resolved.yaml").write_text(redact(show(composed)), encoding="utf-8")
    (folder / "env" / "environment.json").write_text(json.dumps(environment, indent=1))
    state = {"sha": git.sha, "dirty": git.dirty, "untracked": git.untracked}
    (folder / "env" / "git.json").write_text(json.dumps(state, indent=1))
    if git.diff:
        (folder / "env" / "git.diff").write_text(redact(git.diff), encoding="utf-8")


@dataclass(frozen=True)
class _Answers:
    """What became of the evaluation images, seen ones first."""

    ids: Int[np.ndarray, " N"]
    calibrated: Float[np.ndarray, "N U"]
    """Scores less γ for seen classes."""
    labels: Int[np.ndarray, " N"]
    predictions: Int[np.ndarray, " N"]


def _answers(evaluation: Evaluation) -> _Answers:
    scores = np.concatenate([evaluation.seen_scores, evaluation.unseen_scores])
    gamma = evaluation.result.gamma
    return _Answers(
        np.concatenate([evaluation.seen_ids, evaluation.unseen_ids]),
        scores - gamma * evaluation.seen_classes,
        np.concatenate([evaluation.seen_labels, evaluation.unseen_labels]),
        calibrated_predictions(scores, evaluation.seen_classes, gamma),
    )


def _write_curve(target: Path, evaluation: Evaluation) -> None:
    curve = seen_unseen_curve(
        evaluation.seen_scores,
        evaluation.seen_labels,
        evaluation.unseen_scores,
        evaluation.unseen_labels,
        evaluation.seen_classes,
    )
    columns = (curve.gammas, curve.unseen, curve.seen, curve.harmonic)
    _write_table(target / "curve.csv", ("gamma", "unseen", "seen", "harmonic"), zip(*columns, strict=True))
    figure = _figure(5, 5)
    axes = figure.add_subplot()
    axes.plot(curve.unseen, curve.seen, color="tab:blue", drawstyle="default")
    result = evaluation.result
    axes.plot(result.u, result.s, "o", color="tab:orange", label=f"H {result.h:.3f} at γ = {result.gamma:.3g}")
    best = int(curve.harmonic.argmax())
    oracle = f"H* {curve.best_harmonic:.3f} (oracle)"
    axes.plot(curve.unseen[best], curve.seen[best], "x", color="tab:red", label=oracle)
    axes.set(xlabel="accuracy on unseen classes, U", ylabel="accuracy on seen classes, S", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"AUSUC {curve.ausuc:.3f}")
    axes.legend(loc="lower left")
    figure.savefig(target / "curve.png", dpi=120)


def _write_per_class(path: Path, evaluation: Evaluation, names: EvaluationNames, answers: _Answers) -> None:
    count = len(names.classes)
    accuracy = per_class_accuracy(answers.predictions, answers.labels, count)
    images = np.bincount(answers.labels, minlength=count)
    groups = np.where(evaluation.seen_classes, "seen", "unseen")
    rows = zip(names.classes, groups, images, accuracy, strict=True)
    _write_table(path, ("class", "group", "images", "accuracy"), rows)


def _write_confusion(target: Path, evaluation: Evaluation, names: EvaluationNames, answers: _Answers) -> None:
    """Counts; a row is a true class, a column a predicted one."""
    count = len(names.classes)
    cells = answers.labels * count + answers.predictions
    confusion = np.bincount(cells, minlength=count * count).reshape(count, count)
    rows = ([name, *row] for name, row in zip(names.classes, confusion, strict=True))
    _write_table(target / "confusion.csv", ("class", *names.classes), rows)
    if count > LARGEST_PLOTTED_CONFUSION:
        return
    side = 3 + 0.18 * count
    figure = _figure(side, side)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), ax=axes, shrink=0.7)
    ticks = [name if seen else f"{name} *" for name, seen in zip(names.classes, evaluation.seen_classes, strict=True)]
    axes.set_xticks(range(count), ticks, rotation=90, fontsize=6)
    axes.set_yticks(range(count), ticks, fontsize=6)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("share of each class's images; * unseen")
    figure.savefig(target / "confusion.png", dpi=120)


def _write_predictions(target: Path, evaluation: Evaluation, names: EvaluationNames, answers: _Answers) -> None:
    """One row per image: margin is the calibrated score of the prediction less the next best one's."""
    two_best = np.partition(answers.calibrated, -2, axis=1)[:, -2:]
    margins = two_best[:, 1] - two_best[:, 0]
    rows = (
        [
            image,
            names.images[image],
            names.classes[label],
            names.classes[prediction],
            "seen" if evaluation.seen_classes[label] else "unseen",
            int(label == prediction),
            f"{margin:.6g}",
        ]
        for image, label, prediction, margin in zip(
            answers.ids, answers.labels, answers.predictions, margins, strict=True
        )
    )
    file_name = "predictions.csv" if len(answers.ids) <= LARGEST_PLAIN_TABLE else "predictions.csv.gz"
    _write_table(target / file_name, ("id", "image", "label", "prediction", "group", "correct", "margin"), rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with _open_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "wt", encoding="utf-8", newline=""))
    return path.open("w", encoding="utf-8", newline="")


def _figure(width: float, height: float) -> Figure:
    """A figure that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
