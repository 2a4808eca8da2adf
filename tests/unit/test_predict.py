"""`predict`: pictures, broken ones, folders, and classes beside those of the training."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mgmrn.checkpoint import load_model
from mgmrn.prediction import score
from tests.exported import ATTRIBUTES, GAMMA, NAMES, SEEN, inputs_of, scores_of, write_model, write_pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("exported") / "model.pt"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def ask(model: str, asked: Any) -> Any:
    """Runs `predict`; returns exit code, answer and standard error."""
    return partial(asked, "predict", model)


def test_scores_are_calibrated_and_margins_of_all_attributes_add_up_to_the_lead(ask: Any, pictures: list[Path]) -> None:
    code, said, err = ask(*pictures, "--top", "4", "--attributes", len(ATTRIBUTES))
    assert code == 0
    for path, scores, found in zip(pictures, scores_of(pictures), said["pictures"], strict=True):
        calibrated = scores - GAMMA * SEEN
        order = np.argsort(-calibrated)
        assert list(found) == ["picture", "classes", "attributes"] and found["picture"] == str(path)
        assert [one["name"] for one in found["classes"]] == [NAMES[u] for u in order]
        assert [one["seen"] for one in found["classes"]] == SEEN[order].tolist()
        np.testing.assert_allclose([one["score"] for one in found["classes"]], calibrated[order], atol=1e-4)
        margins = [one["margin"] for one in found["attributes"]]
        assert {one["name"] for one in found["attributes"]} == set(ATTRIBUTES)
        assert margins == sorted(margins, reverse=True)
        assert sum(margins) == pytest.approx(scores[order[0]] - scores[order[1]], abs=1e-4)
    assert err.splitlines()[0].split() == ["picture", "class", "score", "decided", "by"]


def test_classes_can_be_given(ask: Any, pictures: list[Path], tmp_path: Path) -> None:
    vectors = np.random.default_rng(3).random((3, len(ATTRIBUTES))).astype(np.float32)
    names, table = ["emu", "wren", "owl"], tmp_path / "classes.csv"
    pd.DataFrame(vectors[:, ::-1], pd.Index(names, name="class"), ATTRIBUTES[::-1]).to_csv(table)
    _, said, _ = ask(pictures[0], "--classes", table)
    found = {one["name"]: one for one in said["pictures"][0]["classes"]}
    assert [found[name]["seen"] for name in names] == [False, True, False], "a wren was trained on"
    wanted = scores_of(pictures[:1], vectors)[0] - GAMMA * np.array([0, 1, 0])
    np.testing.assert_allclose([found[name]["score"] for name in names], wanted, atol=1e-4)
    np.save(tmp_path / "one.npy", vectors[0])
    _, said, _ = ask(pictures[0], "--classes", tmp_path / "one.npy")
    assert [one["name"] for one in said["pictures"][0]["classes"]] == ["class 1"]
    assert said["pictures"][0]["attributes"] == [], "there is no second class"
    np.save(tmp_path / "alike.npy", vectors[[0, 1, 0]])
    _, _, err = ask(pictures[0], "--classes", tmp_path / "alike.npy")
    assert "warning: 2 classes" in err and err.splitlines()[0].endswith("equal attributes: class 1, class 3")


def test_scores_may_be_averaged_with_those_of_the_mirror_image(model: str, pictures: list[Path]) -> None:
    loaded = load_model(Path(model))
    averaging = replace(loaded, config=loaded.config.model_copy(update={"mirror_scores": True}))
    images = inputs_of(pictures)
    straight, mirrored = (score(loaded, view) for view in (images, images.flip(3)))
    both = score(averaging, images)
    np.testing.assert_allclose(both.calibrated, (straight.calibrated + mirrored.calibrated) / 2, atol=1e-5)
    torch.testing.assert_close(both.directions, (straight.directions + mirrored.directions) / 2)
    np.testing.assert_allclose(score(averaging, images.flip(3)).calibrated, both.calibrated, atol=1e-5)


def test_a_broken_picture_costs_only_its_own_answer(ask: Any, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:700])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (7100, 7100)).save(tmp_path / "huge.png")
    os.mkfifo(tmp_path / "pipe.png")
    wrong = ["cut.png", "text.jpg", "huge.png", "gone.png", "pipe.png"]
    code, said, err = ask(pictures[0], *(tmp_path / name for name in wrong), pictures[1])
    assert code == 1
    assert ["error" in one for one in said["pictures"]] == [False, *[True] * len(wrong), False]
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    reasons = ("decoded", "no picture", "50 million", "No such file", "this is a pipe")
    assert all(name in line and reason in line for name, reason, line in zip(wrong, reasons, lines, strict=True))
    code, said, _ = ask(tmp_path / "text.jpg")
    assert code == 2
    assert said["pictures"][0]["error"] == "this is no picture of a known format"


def test_folders_and_json_lines(ask: Any, model: str, pictures: list[Path], typed: Any) -> None:
    folder = pictures[0].parent
    (folder / "inner").mkdir()
    for number in range(35):  # More than a batch.
        Image.new("RGB", (70, 70), (7 * number, 0, 0)).save(folder / "inner" / f"{number:02}.PNG")
    (folder / "notes.txt").write_text("not taken")
    (folder / "zz.gif").write_text("broken")
    code, out, err = typed("predict", model, str(folder), "--json-lines", "--top", "1")
    assert (code, err) == (1, "")
    lines = [json.loads(line) for line in out.splitlines()]
    names = ["0.png", "1.png", *(f"{number:02}.PNG" for number in range(35)), "zz.gif"]
    assert [Path(line["picture"]).name for line in lines] == names
    assert all(len(line["classes"]) == 1 for line in lines[:-1]) and "error" in lines[-1]
    (folder / "empty").mkdir()
    for arguments, message in (
        ([folder / "empty"], "the folder holds no picture"),
        ([pictures[0], "--classes", "gone.csv"], "the class table cannot be read"),
    ):
        code, said, _ = ask(*arguments)
        assert code == 2 and message in said["error"]
