"""`explain`: reasons add up to the answer, maps show where the model attended, JSON keys are stable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgmrn.checkpoint import LoadedModel, load_model
from mgmrn.config import AttributeNetworkConfig, ImageConfig
from mgmrn.data.images import decode, for_evaluation
from mgmrn.errors import UserError
from mgmrn.explanation import CellMap, LevelView
from mgmrn.localisation import Cells
from mgmrn.makers.drawing import PART_OF_TRAIT, PARTS, TRAITS, Creature, draw_creature
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, Parts, part_of, read_parts
from mgmrn.prediction import score
from pipeline.cli.app import main
from pipeline.models.explain_page import SIDE, attention_tile, plain_tile, region_tile, why
from pipeline.models.reasons import (
    ALL_LEVELS,
    ALL_PARTS,
    Subject,
    by_part,
    check_explainable,
    explain,
    point,
    visible,
)
from tests.exported import ATTRIBUTES, CONFIG, NAMES, write_model, write_pictures
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
def model(folder: Path) -> LoadedModel:
    return load_model(folder / "model.pt")


def inputs(folder: Path) -> tuple[list[Subject], torch.Tensor]:
    paths = sorted((folder / "pictures").iterdir())
    images = torch.stack([for_evaluation(decode(path), CONFIG.benchmark.images) for path in paths])
    return [Subject(path, path.name, None) for path in paths], images


def test_reasons_others_and_handicap_are_the_whole_lead(folder: Path, model: LoadedModel) -> None:
    subjects, images = inputs(folder)
    for gamma in (0.5, 0.0):
        model = replace(model, gamma=gamma)
        for row, one in enumerate(explain(model, subjects, images)[1]):
            order = np.argsort(-score(model, images).calibrated[row])
            assert [one.best.name, one.runner_up.name] == [NAMES[u] for u in order[:2]]
            assert sum(reason.total for reason in one.reasons) + one.others + one.handicap == pytest.approx(
                one.margin, abs=1e-4
            )
            sizes = [abs(reason.total) for reason in one.reasons]
            assert sizes == sorted(sizes, reverse=True) and {r.attribute for r in one.reasons} == set(ATTRIBUTES)
            assert [maps.level for maps in one.levels] == list(CONFIG.model.levels)
            for maps in one.levels:
                assert maps.regions is not None
                assert maps.attention.shape == (len(one.reasons), 64, 64)
                torch.testing.assert_close(maps.attention.sum(dim=(1, 2)), torch.ones(len(one.reasons)))
                torch.testing.assert_close(maps.regions.sum(dim=0), torch.ones(64, 64))


def test_the_sentence_names_both_classes_their_attributes_and_the_truth(folder: Path, model: LoadedModel) -> None:
    subjects, images = inputs(folder)
    told = explain(model, [replace(one, truth="emu") for one in subjects], images)[1][0]
    text = why(told)
    assert text.startswith(f"{told.best.name} rather than {told.runner_up.name} by {told.margin:.2f}.")
    assert told.reasons[0].attribute in text and text.endswith("It is emu.")
    # Two classes of one group share γ.
    assert ("γ" in text) == (told.best.seen != told.runner_up.seen)


def test_the_picture_is_shown_as_the_network_sees_it() -> None:
    config = ImageConfig(size=32, resize="squash")
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8).repeat_interleave(2, 1).repeat_interleave(2, 2)
    shown = visible(for_evaluation(pixels, config), config)
    assert shown.shape == (32, 32, 3) and shown.dtype == np.uint8
    assert abs(float(shown.mean()) - float(pixels.float().mean())) < 8


def run(folder: Path, out: Path, *more: str) -> int:
    command = ["explain", str(folder / "model.pt"), "--data-root", str(folder / "data"), "--out", str(out), "--json"]
    return main([*command, *more])


def test_pictures_of_ones_own(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = sorted(map(str, (folder / "pictures").iterdir()))
    assert run(folder, tmp_path, "--image", chosen[0], "--image", chosen[1]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in answer["pictures"]] == chosen
    assert all(one["truth"] is None and len(one["attributes"]) == len(ATTRIBUTES) for one in answer["pictures"])
    assert list(answer) == [
        *("page", "sheets", "run_id", "pictures", "pointing_accuracy", "pointing_chance", "pointing")
    ], "scripts read these keys"
    assert list(answer["pictures"][0]) == [
        *("image", "truth", "class", "runner_up", "margin", "handicap", "others", "attributes")
    ]
    assert (answer["run_id"], answer["pointing_accuracy"], answer["pointing"]) == (None, None, {})
    with Image.open(answer["sheets"][0]) as sheet:
        # A row per picture; a tile for it, and on each of two levels the regions and three attributes.
        assert sheet.format == "PNG" and sheet.width > 9 * SIDE and sheet.height > 2 * SIDE
    page = (tmp_path / "index.html").read_text()
    assert page.count("<article") == 2 and page.count("data:image/jpeg") == 2 * (1 + 2 * (1 + len(ATTRIBUTES)))
    assert "http" not in page.replace("http-equiv", "")


def test_the_first_pictures_of_every_class_of_a_split(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path, "--per-class", "2") == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    truths = [one["truth"] for one in pictures]
    assert len(truths) == 6 and len(set(truths)) == 3 and truths[0] == truths[1]
    assert [Path(one["image"]).name for one in pictures[:2]] == ["6.png", "7.png"]
    assert run(folder, tmp_path, "--split", "test_seen", "--per-class", "1") == 0
    seen = {one["truth"] for one in json.loads(capsys.readouterr().out)["pictures"]}
    assert len(seen) == 6 and seen.isdisjoint(truths)


def test_wrong_uses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out", next((folder / "pictures").iterdir())
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:500])
    for more, told in (
        (["--image", str(picture), "--split", "test_seen"], "--image and --split"),
        (["--image", str(tmp_path / "none.png")], "cannot be read"),
        (["--image", str(broken)], "cannot be decoded"),
    ):
        assert run(folder, out, *more) == 2
        assert told in json.loads(capsys.readouterr().out)["error"]
    assert not out.exists()


def test_a_model_without_attention_is_refused(model: LoadedModel) -> None:
    config = model.config.model_copy(update={"model": AttributeNetworkConfig()})
    with pytest.raises(UserError, match="attribute_network attends to nothing"):
        check_explainable(replace(model, config=config))


def test_everything_is_left_with_the_run(
    folder: Path, model: LoadedModel, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from pipeline.models import explain as module
    from pipeline.tracking.store import TrackingStore

    (tmp_path / "mlflow.db").write_bytes(tables.read_bytes())
    store = TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = store.create_parent("a run", {})
    monkeypatch.setattr(module, "open_model", lambda name, uri: model)
    picture = str(next((folder / "pictures").iterdir()))
    command = [
        "explain",
        run_id,
        "--image",
        picture,
        "--out",
        str(tmp_path / "out"),
        "--tracking-uri",
        store.uri,
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == run_id
    assert store.read_text(run_id, "explain/index.html") == (tmp_path / "out/index.html").read_text()
    assert [one.path for one in store.client.list_artifacts(run_id, "explain/sheets")] == [
        "explain/sheets/pictures.png"
    ]


def test_every_attribute_of_the_embedded_benchmark_has_a_part_with_a_box() -> None:
    assert PART_OF_TRAIT.keys() == TRAITS.keys() and set(PART_OF_TRAIT.values()) == set(PARTS)
    assert part_of("red_eye_ring") == part_of("red eye ring") == "eye"
    assert part_of("crested crown") == "crown" and part_of("wings") is None


def test_parts_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    assert read_parts(tmp_path, "SYN") is None
    (tmp_path / "SYN").mkdir()
    (tmp_path / "SYNTHETIC.json").touch()
    path = tmp_path / "SYN" / "parts.json"
    boxes = {"beak": [1, 2, 3, 4], "habitat": [0, 0, 9, 9]}
    path.write_text(json.dumps({"a/1.jpg": {"attributes": ["red beak", "snow habitat"], "boxes": boxes}}))
    found = read_parts(tmp_path, "SYN")
    assert found is not None and found["images/a/1.jpg"].shown() == {"red beak": (1, 2, 3, 4)}
    path.write_text('{"a": 3}')
    with pytest.raises(UserError, match="boxes of the parts"):
        read_parts(tmp_path, "SYN")


def drawn(tmp_path: Path) -> tuple[Subject, Parts]:
    creature = Creature({trait: names[0] for trait, names in TRAITS.items()})
    picture = draw_creature(creature, 64, np.random.default_rng(0))
    path = tmp_path / "creature.png"
    Image.fromarray(picture.pixels).save(path)
    return Subject(path, "images/creature.png", None), Parts(picture.boxes, tuple(creature.values.values()))


@pytest.mark.parametrize("right", [True, False])
def test_attention_on_the_part_is_a_hit_and_elsewhere_is_none(tmp_path: Path, right: bool) -> None:
    subject, parts = drawn(tmp_path)
    size, cells = 128, Cells(32, 2.0, 4.0)
    attention = torch.zeros(1, len(ATTRIBUTE_NAMES), 32, 32)
    for row, name in enumerate(ATTRIBUTE_NAMES):
        left, top, width, bottom = parts.boxes[str(part_of(name))]
        # The input is twice the picture, so a cell is two pixels of it; corners of the input hold no part.
        x, y = (int((left + width) / 4), int((top + bottom) / 4)) if right else (0, 0)
        attention[0, row, y, x] = 1.0
    view = LevelView(torch.zeros(1, len(ATTRIBUTE_NAMES)), (CellMap(attention, cells),), None)
    config = ImageConfig(size=size, resize="squash")
    pointed = point({"c2": view, "c3": view}, [subject], {subject.file: parts}, ATTRIBUTE_NAMES, config)
    table = by_part(pointed)
    assert list(table) == ["c2", "c3", ALL_LEVELS]
    for level in table.values():
        assert set(level) == {ALL_PARTS, *PARTS} - {"habitat"}
        assert level[ALL_PARTS].maps == len(TRAITS) - 1
        assert {one.accuracy for one in level.values()} == {float(right)}
        assert all(0 < one.chance < 0.4 for one in level.values())
    eye = parts.boxes["eye"]
    assert table["c2"]["eye"].chance == pytest.approx((eye[2] - eye[0]) * (eye[3] - eye[1]) / 64**2, rel=1e-3)


def test_tiles_are_bright_where_attention_is_and_coloured_by_region() -> None:
    pixels: Any = np.full((64, 64, 3), 20, dtype=np.uint8)
    attention = torch.zeros(64, 64)
    attention[16:24, 40:48] = 0.001
    hot = np.asarray(attention_tile(pixels, attention), dtype=int)
    assert hot.shape == (SIDE, SIDE, 3)
    assert hot[40, 88].sum() > 3 * hot[100, 20].sum()
    regions = torch.zeros(3, 64, 64)
    regions[0, :, :32], regions[1, :, 32:] = 1.0, 1.0
    tile = np.asarray(region_tile(pixels, regions), dtype=int)
    assert np.abs(tile[64, 20] - tile[64, 100]).max() > 60
    unsure = np.asarray(region_tile(pixels, torch.full((3, 64, 64), 1 / 3)), dtype=int)
    assert np.ptp(unsure[64, 20]) < np.ptp(tile[64, 20])
    assert np.asarray(plain_tile(pixels)).max() == 20
