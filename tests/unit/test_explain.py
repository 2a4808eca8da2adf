"""`explain`: reasons add up to the answer, maps show where the model attended, JSON keys are stable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgmrn.checkpoint import TrainedModel, load_model
from mgmrn.config import AttributeNetworkConfig
from mgmrn.errors import UserError
from mgmrn.prediction import score
from pipeline.models import explain as module
from pipeline.models import reasons
from pipeline.models.explain import SIDE
from pipeline.models.reasons import Subject, check_explainable, explain
from tests.exported import ATTRIBUTES, CONFIG, NAMES, inputs_of, write_model, write_pictures
from tests.pages import parsed
from tests.tiny import write_benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pictures of unknown classes, and a small benchmark with the name of the one that the model was trained on."""
    root = tmp_path_factory.mktemp("explain")
    write_model(root / "model.pt")
    write_pictures(root / "pictures")
    write_benchmark(root / "data", CONFIG.benchmark.name)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return load_model(folder / "model.pt")


@pytest.mark.parametrize("gamma", [0.5, 0.0])
def test_reasons_others_and_handicap_are_the_whole_lead(folder: Path, model: TrainedModel, gamma: float) -> None:
    paths = sorted((folder / "pictures").iterdir())
    subjects, images = [Subject(path, path.name, None) for path in paths], inputs_of(paths)
    model = replace(model, gamma=gamma)
    order = np.argsort(-score(model, images).calibrated, axis=1)
    for one, classes in zip(explain(model, subjects, images), order, strict=True):
        assert [one.best.name, one.runner_up.name] == [NAMES[u] for u in classes[:2]]
        lead = sum(reason.total for reason in one.reasons) + one.others + one.handicap
        assert lead == pytest.approx(one.margin, abs=1e-4)
        sizes = [abs(reason.total) for reason in one.reasons]
        assert sizes == sorted(sizes, reverse=True) and {r.attribute for r in one.reasons} == set(ATTRIBUTES)
        assert [maps.level for maps in one.levels] == list(CONFIG.model.levels)
        for maps in one.levels:
            assert maps.regions is not None and maps.attention.shape == (len(one.reasons), 64, 64)
            torch.testing.assert_close(maps.attention.sum(dim=(1, 2)), torch.ones(len(one.reasons)))
            torch.testing.assert_close(maps.regions.sum(dim=0), torch.ones(64, 64))


@pytest.fixture
def ask(folder: Path, tmp_path: Path, asked: Any) -> Any:
    """Runs `explain` and returns exit code and answer."""
    options = ("--data-root", folder / "data", "--out", tmp_path / "out")
    return lambda *words: asked("explain", folder / "model.pt", *options, *words)[:2]


def test_named_pictures_and_the_first_of_every_class(folder: Path, tmp_path: Path, monkeypatch: Any, ask: Any) -> None:
    chosen = sorted(map(str, (folder / "pictures").iterdir()))
    code, answer = ask("--image", chosen[0], "--image", chosen[1])
    assert code == 0 and [one["image"] for one in answer["pictures"]] == chosen
    assert all(one["truth"] is None and len(one["attributes"]) == len(ATTRIBUTES) for one in answer["pictures"])
    keys = ["page", "sheets", "run_id", "pictures", "pointing_accuracy", "pointing_chance", "pointing"]
    assert list(answer) == keys, "scripts read these keys"
    keys = ["image", "truth", "class", "runner_up", "margin", "handicap", "others", "attributes"]
    assert list(answer["pictures"][0]) == keys
    assert (answer["run_id"], answer["pointing_accuracy"], answer["pointing"]) == (None, None, {})
    with Image.open(answer["sheets"][0]) as sheet:
        # A row per picture; a tile for it, and on each of two levels the regions and three attributes.
        assert sheet.format == "PNG" and sheet.width > 9 * SIDE and sheet.height > 2 * SIDE
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<article") == 2 and page.count("data:image/jpeg") == 2 * (1 + 2 * (1 + len(ATTRIBUTES)))
    assert "http" not in page.replace("http-equiv", "")
    monkeypatch.setattr(reasons, "DECISIVE", 1)  # Most of the time is spent on maps.
    seen = {one["truth"] for one in ask("--split", "test_seen", "--per-class", "1")[1]["pictures"]}
    pictures = ask("--per-class", "2")[1]["pictures"]
    truths = [one["truth"] for one in pictures]
    assert len(truths) == 6 and len(set(truths)) == 3 and truths[0] == truths[1]
    assert [Path(one["image"]).name for one in pictures[:2]] == ["6.png", "7.png"]
    articles = parsed((tmp_path / "out" / "index.html").read_text()).all("article")
    for one, words in zip(pictures, (article.one("p").text for article in articles), strict=True):
        assert words.startswith(f"{one['class']} rather than {one['runner_up']} by {one['margin']:.2f}. For ")
        assert words.endswith(f"It is {one['truth']}.") and any(name in words for name in ATTRIBUTES)
        assert ("γ is worth" in words) == (one["handicap"] != 0)
    assert len(seen) == 6 and seen.isdisjoint(truths)


def test_a_broken_picture_and_no_attention_are_refused(folder: Path, tmp_path: Path, model: Any, ask: Any) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(next((folder / "pictures").iterdir()).read_bytes()[:500])
    code, answer = ask("--image", broken)
    assert code == 2 and "cannot be decoded" in answer["error"] and not (tmp_path / "out").exists()
    config = model.config.model_copy(update={"model": AttributeNetworkConfig()})
    with pytest.raises(UserError, match="attribute_network attends to nothing"):
        check_explainable(replace(model, config=config))


def test_page_and_sheets_are_logged(folder: Path, model: Any, store: Any, tmp_path: Path, monkeypatch: Any) -> None:
    run_id = store.create_parent("a run", {})
    monkeypatch.setattr(module, "open_model", lambda name, uri: model)
    picture = next((folder / "pictures").iterdir())
    made = module.run_explain(run_id, [picture], "test_unseen", 1, tmp_path, store.uri, folder)
    assert made.run_id == run_id
    assert store.read_text(run_id, "explain/index.html") == (tmp_path / "index.html").read_text()
    (sheet,) = store.files_of(run_id).list_artifacts("explain/sheets")
    assert sheet.path == "explain/sheets/pictures.png"
