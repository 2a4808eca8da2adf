"""Files that a finished run carries: evaluation tables, on `final` with plots, and the resolved config. U: classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from mgmrn.metrics import SeenMask, calibrated_predictions, per_class_accuracy, seen_unseen_curve
from mgmrn.protocol import Evaluation
from pipeline.config.compose import ComposedConfig, show
from pipeline.redaction import redact

LARGEST_PLOTTED_CONFUSION = 60
LARGEST_PLAIN_TABLE = 5000


def write_evaluation(folder: Path, evaluation: Evaluation, names: Sequence[str], images: Mapping[int, str]) -> None:
    """Write `eval/` at the evaluation's γ; `names` are those of the U classes in the order of the scores, `images` the files by id."""
    target = folder / "eval"
    target.mkdir(parents=True, exist_ok=True)
    gamma, seen, count = evaluation.result.gamma, evaluation.seen_classes, len(names)
    ids = np.concatenate([evaluation.seen_ids, evaluation.unseen_ids])
    scores = np.concatenate([evaluation.seen_scores, evaluation.unseen_scores])
    labels = np.concatenate([evaluation.seen_labels, evaluation.unseen_labels])
    predictions = calibrated_predictions(scores, seen, gamma)
    classes, groups = np.asarray(names), np.where(seen, "seen", "unseen")
    per_class = {
        "class": classes,
        "group": groups,
        "images": np.bincount(labels, minlength=count),
        "accuracy": per_class_accuracy(predictions, labels, count),
    }
    _write_table(target / "per_class.csv", per_class)
    # A row for each true class, a column for each predicted one.
    confusion = np.bincount(labels * count + predictions, minlength=count * count).reshape(count, count)
    _write_table(target / "confusion.csv", {"class": classes, **dict(zip(names, confusion.T, strict=True))})
    # A plot takes the driver up to a second of a core, which the many `tune` runs of a grid or a search are not worth.
    if evaluation.split == "final" and count <= LARGEST_PLOTTED_CONFUSION:
        _plot_confusion(target / "confusion.png", confusion, names, seen)
    # The margin is the calibrated score of the prediction less that of the next best class.
    two_best = np.partition(scores - gamma * seen, -2, axis=1)[:, -2:]
    per_image = {
        "id": ids,
        "image": [images[image] for image in ids],
        "label": classes[labels],
        "prediction": classes[predictions],
        "group": groups[labels],
        "correct": (labels == predictions).astype(int),
        "margin": [f"{margin:.6g}" for margin in two_best[:, 1] - two_best[:, 0]],
    }
    _write_table(target / ("predictions.csv" if len(ids) <= LARGEST_PLAIN_TABLE else "predictions.csv.gz"), per_image)
    _write_curve(target, evaluation)


def write_config(folder: Path, composed: ComposedConfig) -> None:
    """Write `config/resolved.yaml` with the origin of every value; passwords are masked."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "resolved.yaml").write_text(redact(show(composed)), encoding="utf-8")


def _write_curve(target: Path, evaluation: Evaluation) -> None:
    seen, unseen = (
        (evaluation.seen_scores, evaluation.seen_labels),
        (evaluation.unseen_scores, evaluation.unseen_labels),
    )
    curve = seen_unseen_curve(*seen, *unseen, evaluation.seen_classes)
    columns = {"gamma": curve.gammas, "unseen": curve.unseen, "seen": curve.seen, "harmonic": curve.harmonic}
    _write_table(target / "curve.csv", columns)
    if evaluation.split == "tune":
        return
    from matplotlib.figure import Figure

    figure = Figure((5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.unseen, curve.seen, color="tab:blue")
    result = evaluation.result
    label = f"H {result.gzsl_h:.3f} at γ = {result.gamma:.3g}"
    axes.plot(result.gzsl_u, result.gzsl_s, "o", color="tab:orange", label=label)
    best = int(curve.harmonic.argmax())
    oracle = f"H* {curve.best_harmonic:.3f} (oracle)"
    axes.plot(curve.unseen[best], curve.seen[best], "x", color="tab:red", label=oracle)
    axes.set(xlabel="accuracy on unseen classes, U", ylabel="accuracy on seen classes, S", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"AUSUC {curve.ausuc:.3f}")
    axes.legend(loc="lower left")
    figure.savefig(target / "curve.png", dpi=120)


def _plot_confusion(path: Path, confusion: Int[np.ndarray, "U U"], names: Sequence[str], seen: SeenMask) -> None:
    from matplotlib.figure import Figure

    side = 3 + 0.18 * len(confusion)
    figure = Figure((side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), ax=axes, shrink=0.7)
    ticks = [name if is_seen else f"{name} *" for name, is_seen in zip(names, seen, strict=True)]
    axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=6)
    axes.set_yticks(range(len(ticks)), ticks, fontsize=6)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("share of each class's images; * unseen")
    figure.savefig(path, dpi=120)


def _write_table(path: Path, columns: Mapping[str, Any]) -> None:
    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n", na_rep="nan")
