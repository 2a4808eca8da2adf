"""The embedded benchmark: deterministic, in the published layout, and drawn as its attributes say."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat

from mgmrn.errors import UserError
from mgmrn.makers import synthetic
from mgmrn.makers.drawing import PARTS, TRAITS, Creature, draw_creature
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, creature_classes, make_synthetic

PER_CLASS, SIZE = 5, 32
LOCATIONS = ("trainval_loc", "train_loc", "val_loc", "test_seen_loc", "test_unseen_loc")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_synthetic(tmp_path_factory.mktemp("made") / "root", per_class=PER_CLASS, size=SIZE)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lists(root: Path) -> dict[str, np.ndarray]:
    splits = loadmat(root / "xlsa17/data/SYN/att_splits.mat")
    return {name: splits[name].ravel().astype(int) - 1 for name in LOCATIONS}


def labels(root: Path) -> np.ndarray:
    return loadmat(root / "xlsa17/data/SYN/res101.mat")["labels"].ravel().astype(int) - 1


def creature(**changes: str) -> Creature:
    values = {trait: names[0] for trait, names in TRAITS.items()}
    return Creature({**values, **{trait.replace("_", " "): value for trait, value in changes.items()}})


def test_every_byte_follows_from_the_options(root: Path, tmp_path: Path) -> None:
    again = make_synthetic(tmp_path / "again", per_class=PER_CLASS, size=SIZE, workers=2)
    assert files(again) == files(root)


def test_another_seed_gives_other_classes_and_pictures(tmp_path: Path) -> None:
    assert not np.array_equal(creature_classes(0).probabilities, creature_classes(1).probabilities)
    drawing = synthetic._drawings(creature_classes(0), PER_CLASS)[0]
    stored = []
    for seed in (0, 0, 1):
        (tmp_path / "SYN" / "images" / drawing.path).parent.mkdir(parents=True, exist_ok=True)
        synthetic._draw(tmp_path, SIZE, seed, drawing)
        stored.append((tmp_path / "SYN" / "images" / drawing.path).read_bytes())
    assert stored[0] == stored[1] != stored[2]


def test_files_have_the_published_shapes_and_types(root: Path) -> None:
    images = loadmat(root / "xlsa17/data/SYN/res101.mat")
    splits = loadmat(root / "xlsa17/data/SYN/att_splits.mat")
    count = 40 * PER_CLASS
    assert images["image_files"].shape == images["labels"].shape == (count, 1)
    assert images["labels"].dtype == np.float64
    assert set(images["labels"].ravel()) == set(range(1, 41))
    assert splits["att"].shape == splits["original_att"].shape == (len(ATTRIBUTE_NAMES), 40)
    assert 30 <= len(ATTRIBUTE_NAMES) <= 60
    assert splits["allclasses_names"].shape == (40, 1)
    assert all(splits[name].dtype == np.float64 and splits[name].shape[1] == 1 for name in LOCATIONS)
    np.testing.assert_allclose(np.linalg.norm(splits["att"], axis=0), 1.0)
    assert splits["original_att"].min() >= 0
    assert splits["original_att"].max() <= 1


def test_listed_images_are_there_behind_the_anchor_and_in_their_class(root: Path) -> None:
    images = loadmat(root / "xlsa17/data/SYN/res101.mat")
    names = [str(cell[0]) for cell in loadmat(root / "xlsa17/data/SYN/att_splits.mat")["allclasses_names"].ravel()]
    assert names != sorted(names), "the order of the columns must not be that of the folders"
    for listed, label in zip(images["image_files"].ravel(), labels(root), strict=True):
        path = str(listed[0]).partition("/SYN/images/")[2]
        assert path.split("/")[0] == names[label]
        with Image.open(root / "SYN" / "images" / path) as image:
            assert image.size == (SIZE, SIZE)


def test_splits_share_out_the_images_and_the_classes(root: Path) -> None:
    split, label = lists(root), labels(root)
    everything = np.concatenate([split["trainval_loc"], split["test_seen_loc"], split["test_unseen_loc"]])
    assert sorted(everything) == list(range(40 * PER_CLASS))
    assert sorted(np.concatenate([split["train_loc"], split["val_loc"]])) == sorted(split["trainval_loc"])
    classes = {name: set(label[split[name]]) for name in LOCATIONS}
    assert [len(classes[name]) for name in LOCATIONS] == [30, 24, 6, 30, 10]
    assert classes["trainval_loc"] == classes["test_seen_loc"]
    assert not classes["train_loc"] & classes["val_loc"]
    assert not classes["trainval_loc"] & classes["test_unseen_loc"]
    per_class = np.bincount(label[split["test_seen_loc"]])
    assert set(per_class[per_class > 0]) == {round(PER_CLASS * 0.2)}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_unseen_classes_are_new_combinations_of_attributes_known_from_training(seed: int) -> None:
    classes = creature_classes(seed)
    start = 0
    commonest = []
    for names in TRAITS.values():
        share = classes.probabilities[start : start + len(names)]
        np.testing.assert_allclose(share.sum(axis=0), 1.0)
        commonest.append(share.argmax(axis=0))
        start += len(names)
    table = np.stack(commonest, axis=1)
    assert len(np.unique(table, axis=0)) == 40
    for trait in range(table.shape[1]):
        assert set(table[classes.unseen, trait]) <= set(table[classes.train, trait])
    assert sorted(np.concatenate([classes.train, classes.val, classes.unseen])) == list(range(40))


def test_pictures_show_attributes_as_often_as_their_class_says() -> None:
    classes = creature_classes(3)
    rng = np.random.default_rng(0)
    column = tuple(classes.probabilities[:, 7].tolist())
    shown = [synthetic._sample(column, rng).values.values() for _ in range(2000)]
    frequency = [np.mean([name in values for values in shown]) for name in ATTRIBUTE_NAMES]
    np.testing.assert_allclose(frequency, column, atol=0.05)


@pytest.mark.parametrize(
    ("part", "one", "other"),
    [
        ("eye", {"eye": "red eye ring"}, {"eye": "blue eye ring"}),
        ("beak", {"beak": "yellow beak"}, {"beak": "black beak"}),
        ("crown", {"crown": "green crown"}, {"crown": "red crown"}),
        ("wing", {"wing": "white wing"}, {"wing": "blue wing"}),
        ("wing", {"wing_bars": "barred wing"}, {"wing_bars": "plain wing"}),
        ("tail", {"tail": "yellow tail"}, {"tail": "green tail"}),
        ("body", {"pattern": "plain body"}, {"pattern": "striped body"}),
        ("body", {"body": "red body"}, {"body": "white body"}),
        ("habitat", {"habitat": "snow habitat"}, {"habitat": "forest habitat"}),
    ],
)
def test_an_attribute_changes_the_pixels_of_its_part(part: str, one: dict[str, str], other: dict[str, str]) -> None:
    size = 64
    for seed in range(4):
        first = draw_creature(creature(**one), size, np.random.default_rng(seed))
        second = draw_creature(creature(**other), size, np.random.default_rng(seed))
        box = np.array(first.boxes[part])
        left, top, right, bottom = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)
        changed = np.abs(first.pixels.astype(int) - second.pixels.astype(int)).max(axis=2) > 40
        inside = np.zeros_like(changed)
        inside[top:bottom, left:right] = True
        assert changed[inside].sum() >= 8
        if part not in ("habitat", "body"):
            # A pixel of outline may stick out; the head takes the body's colour.
            assert changed[inside].sum() > 0.9 * changed.sum()


def test_parts_are_stored_for_every_image(root: Path) -> None:
    parts = json.loads((root / "SYN" / "parts.json").read_text())
    assert {f"SYN/images/{path}" for path in parts} == {name for name in files(root) if name.endswith(".jpg")}
    for part in parts.values():
        assert [name for names in TRAITS.values() for name in names if name in part["attributes"]] == part["attributes"]
        assert set(part["boxes"]) == set(PARTS)
        for left, top, right, bottom in part["boxes"].values():
            assert 0 <= left <= right <= SIZE
            assert 0 <= top <= bottom <= SIZE


def test_what_is_already_made_is_not_made_again(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    drawn = []
    make_synthetic(root, per_class=PER_CLASS, size=SIZE, progress=lambda done, total: drawn.append(done))
    assert not drawn
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_folder_with_other_things_in_it_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        make_synthetic(tmp_path, per_class=PER_CLASS, size=SIZE)
    assert files(tmp_path) == {"letter.txt": b"keep me"}
    with pytest.raises(UserError, match="other options"):
        make_synthetic(root, seed=9, per_class=PER_CLASS, size=SIZE)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "root", per_class=PER_CLASS, size=SIZE, progress=fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"per_class": 4}, {"size": 16}, {"seed": -1}])
def test_options_out_of_bounds_are_refused(tmp_path: Path, option: dict[str, int]) -> None:
    options = {"per_class": PER_CLASS, "size": SIZE, **option}
    with pytest.raises(UserError, match=next(iter(option))):
        make_synthetic(tmp_path / "root", **options)
    assert not list(tmp_path.iterdir())
