"""The files that a finished run carries: evaluation tables and plots, the resolved config, the environment."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from mgmrn.metrics import SeenUnseenCurve, calibrated_predictions, per_class_accuracy, seen_unseen_curve
from pipeline.compose import ComposedConfig, show
from pipeline.tracking.environment import GitState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_PLOTTED_CONFUSION = 60
"""Classes; beyond, a picture shows nothing."""
LARGEST_PLAIN_TABLE = 5000
"""Rows; a longer table of predictions is compressed."""


@dataclass(frozen=True)
class EvaluationData:
    """Scores of the evaluation images over all classes, and what is needed to name images and classes."""

    class_names: Sequence[str]
    seen_classes: Bool[np.ndarray, " U"]
    seen_scores: Float[np.ndarray, "N_s U"]
    seen_labels: Int[np.ndarray, " N_s"]
    seen_ids: Int[np.ndarray, " N_s"]
    unseen_scores: Float[np.ndarray, "N_u U"]
    unseen_labels: Int[np.ndarray, " N_u"]
    unseen_ids: Int[np.ndarray, " N_u"]
    image_names: Sequence[str]
    """Of every image of the benchmark; ids are positions here."""
    gamma: float
    """γ of calibrated stacking that the tables are made at."""
    note: str = ""
    """Written over every picture, such as that the images are stand-ins."""


def write_evaluation(folder: Path, data: EvaluationData) -> None:
    """Writes `eval/`: curve, per-class table, confusion and per-image predictions at the given γ."""
    target = folder / "eval"
    target.mkdir(parents=True, exist_ok=True)
    scores = np.concatenate([data.seen_scores, data.unseen_scores])
    labels = np.concatenate([data.seen_labels, data.unseen_labels])
    predictions = calibrated_predictions(scores, data.seen_classes, data.gamma)
    curve = seen_unseen_curve(
        data.seen_scores, data.seen_labels, data.unseen_scores, data.unseen_labels, data.seen_classes
    )
    _write_curve(target, curve, data)
    _write_per_class(target / "per_class.csv", data, labels, predictions)
    _write_confusion(target, data, labels, predictions)
    _write_predictions(target, data, scores, labels, predictions)


def write_provenance(folder: Path, composed: ComposedConfig, environment: dict[str, Any], git: GitState) -> None:
    """Writes `config/resolved.yaml`, with every value's origin, and `env/`: machine, git state, what is uncommitted."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "env").mkdir(exist_ok=True)
    (folder / "config" / "resolved.yaml").write_text(show(composed), encoding="utf-8")
    (folder / "env" / "environment.json").write_text(json.dumps(environment, indent=1))
    state = {"sha": git.sha, "dirty": git.dirty, "untracked": git.untracked}
    (folder / "env" / "git.json").write_text(json.dumps(state, indent=1))
    if git.diff:
        (folder / "env" / "git.diff").write_text(git.diff, encoding="utf-8")


def _write_curve(target: Path, curve: SeenUnseenCurve, data: EvaluationData) -> None:
    columns = (curve.gammas, curve.unseen, curve.seen, curve.harmonic)
    _write_table(target / "curve.csv", ("gamma", "unseen", "seen", "harmonic"), zip(*columns, strict=True))
    figure = _figure(5, 5)
    axes = figure.add_subplot()
    axes.plot(curve.unseen, curve.seen, color="tab:blue", drawstyle="default")
    unseen, seen, harmonic = curve.at(data.gamma)
    axes.plot(unseen, seen, "o", color="tab:orange", label=f"H {harmonic:.3f} at γ = {data.gamma:.3g}")
    best = int(curve.harmonic.argmax())
    oracle = f"H* {curve.best_harmonic:.3f} (oracle)"
    axes.plot(curve.unseen[best], curve.seen[best], "x", color="tab:red", label=oracle)
    axes.set(xlabel="accuracy on unseen classes, U", ylabel="accuracy on seen classes, S", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(_title(f"AUSUC {curve.ausuc:.3f}", data))
    axes.legend(loc="lower left")
    _save(figure, target / "curve.png", data)


def _write_per_class(
    path: Path, data: EvaluationData, labels: Int[np.ndarray, " N"], predictions: Int[np.ndarray, " N"]
) -> None:
    count = len(data.class_names)
    accuracy = per_class_accuracy(predictions, labels, count)
    images = np.bincount(labels, minlength=count)
    groups = np.where(data.seen_classes, "seen", "unseen")
    rows = zip(data.class_names, groups, images, accuracy, strict=True)
    _write_table(path, ("class", "group", "images", "accuracy"), rows)


def _write_confusion(
    target: Path, data: EvaluationData, labels: Int[np.ndarray, " N"], predictions: Int[np.ndarray, " N"]
) -> None:
    """Counts; a row is a true class, a column a predicted one."""
    count = len(data.class_names)
    confusion = np.bincount(labels * count + predictions, minlength=count * count).reshape(count, count)
    rows = ([name, *row] for name, row in zip(data.class_names, confusion, strict=True))
    _write_table(target / "confusion.csv", ("class", *data.class_names), rows)
    if count > LARGEST_PLOTTED_CONFUSION:
        return
    side = 3 + 0.18 * count
    figure = _figure(side, side)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), ax=axes, shrink=0.7)
    names = [name if seen else f"{name} *" for name, seen in zip(data.class_names, data.seen_classes, strict=True)]
    axes.set_xticks(range(count), names, rotation=90, fontsize=6)
    axes.set_yticks(range(count), names, fontsize=6)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(_title("share of each class's images; * unseen", data))
    _save(figure, target / "confusion.png", data)


def _write_predictions(
    target: Path,
    data: EvaluationData,
    scores: Float[np.ndarray, "N U"],
    labels: Int[np.ndarray, " N"],
    predictions: Int[np.ndarray, " N"],
) -> None:
    """One row per image: margin is the calibrated score of the prediction less the next best one's."""
    ids = np.concatenate([data.seen_ids, data.unseen_ids])
    calibrated = scores - data.gamma * data.seen_classes
    two_best = np.partition(calibrated, -2, axis=1)[:, -2:]
    rows = (
        [
            image,
            data.image_names[image],
            data.class_names[label],
            data.class_names[prediction],
            "seen" if data.seen_classes[label] else "unseen",
            int(label == prediction),
            f"{margin:.6g}",
        ]
        for image, label, prediction, margin in zip(
            ids, labels, predictions, two_best[:, 1] - two_best[:, 0], strict=True
        )
    )
    name = "predictions.csv" if len(ids) <= LARGEST_PLAIN_TABLE else "predictions.csv.gz"
    _write_table(target / name, ("id", "image", "label", "prediction", "group", "correct", "margin"), rows)


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


def _save(figure: Figure, path: Path, data: EvaluationData) -> None:
    """Writes a picture that also carries the note inside, for whoever finds the file alone."""
    figure.savefig(path, dpi=120, metadata={"Description": data.note} if data.note else None)


def _title(text: str, data: EvaluationData) -> str:
    return f"{data.note}\n{text}" if data.note else text
