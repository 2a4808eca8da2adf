"""Files that a run carries: evaluation tables, config with origins, machine, state of the code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mgmrn.protocol import Evaluation
from pipeline.config.compose import load_experiment
from pipeline.tracking import artifacts, environment
from pipeline.tracking.artifacts import write_config, write_evaluation
from pipeline.tracking.environment import GitState, write_environment


def written(folder: Path, count: int, images: int = 8) -> Evaluation:
    """Write the tables of an evaluation with drawn scores; the last class is unseen."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, images, count)).astype(np.float32)
    labels = rng.integers(count - 1, size=images), np.full(images, count - 1)
    ids = np.arange(2 * images).reshape(2, images)
    evaluation = Evaluation("final", *scores, *labels, *ids, np.arange(count) < count - 1, gamma=0.25)
    files = {i: f"folder/{i}.jpg" for i in range(2 * images)}
    write_evaluation(folder, evaluation, [f"class {i}" for i in range(count)], files)
    return evaluation


def test_the_evaluation_tables_agree_with_the_scores(tmp_path: Path) -> None:
    data, folder = written(tmp_path, 3), tmp_path / "eval"
    scores = np.concatenate([data.seen_scores, data.unseen_scores]) - data.result.gamma * data.seen_classes
    labels = np.concatenate([data.seen_labels, data.unseen_labels])
    is_right, ordered = scores.argmax(axis=1) == labels, np.sort(scores, axis=1)
    predictions = pd.read_csv(folder / "predictions.csv")
    assert list(predictions) == ["id", "image", "label", "prediction", "group", "correct", "margin"]
    assert list(predictions["prediction"]) == [f"class {i}" for i in scores.argmax(axis=1)]
    assert list(predictions["label"]) == [f"class {i}" for i in labels]
    assert list(predictions["correct"]) == is_right.astype(int).tolist()
    assert predictions["image"][3] == "folder/3.jpg"
    np.testing.assert_allclose(predictions["margin"], ordered[:, -1] - ordered[:, -2], rtol=1e-4)
    per_class = pd.read_csv(folder / "per_class.csv")
    assert list(per_class["images"]) == np.bincount(labels, minlength=3).tolist()
    accuracy = pd.Series(is_right).groupby(labels).mean().reindex(range(3))
    np.testing.assert_allclose(per_class["accuracy"], accuracy)
    assert list(per_class["group"]) == ["seen", "seen", "unseen"]
    confusion = pd.read_csv(folder / "confusion.csv", index_col="class").to_numpy()
    assert confusion.sum(axis=1).tolist() == list(per_class["images"]) and confusion.trace() == is_right.sum()
    curve = pd.read_csv(folder / "curve.csv")
    assert curve["unseen"].iloc[0] == curve["seen"].iloc[-1] == 0
    for name in ("curve.png", "confusion.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_large_tables_are_compressed_and_large_confusions_not_drawn(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(artifacts, "LARGEST_PLAIN_TABLE", 10)
    written(tmp_path, 61)
    assert len(pd.read_csv(tmp_path / "eval" / "predictions.csv.gz")) == 16
    assert not (tmp_path / "eval" / "confusion.png").exists()
    assert not (tmp_path / "eval" / "predictions.csv").exists()


def test_config_and_environment(tmp_path: Path, monkeypatch: Any) -> None:
    write_config(tmp_path, load_experiment("cub100", ["seed=5"]))
    text = (tmp_path / "config" / "resolved.yaml").read_text()
    assert yaml.safe_load(text)["seed"] == 5 and "# --set" in text
    git = GitState("abc", True, "+ a\n+ URI = 'postgresql://me:hunter2@db/x'\n", ("new.py",))
    monkeypatch.setattr(environment, "git_state", lambda: git)
    folder = tmp_path / write_environment(tmp_path)
    assert tmp_path / write_environment(tmp_path) == folder
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert json.loads((folder / "git.json").read_text())["untracked"] == ["new.py"]
    assert (folder / "git.diff").read_text() == "+ a\n+ URI = 'postgresql://me:***@db/x'\n"
    monkeypatch.setattr(environment, "git_state", lambda: GitState("def", False, "", ()))
    assert tmp_path / write_environment(tmp_path) != folder, "that of another launch stands beside it"
