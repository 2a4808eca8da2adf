"""The embedded benchmark: deterministic, in the published layout, and drawn as its attributes say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from mgmrn.data.xlsa17 import LISTS, SYNTHETIC_MARKER
from mgmrn.errors import UserError
from mgmrn.makers import synthetic
from mgmrn.makers.drawing import PARTS, TRAITS, Creature, draw_creature
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, creature_classes, make_synthetic

PER_CLASS, SIZE = 5, 32
COUNT = 40 * PER_CLASS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("made") / "root", per_class=PER_CLASS, size=SIZE, workers=2)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def mat(root: Path, name: str) -> dict[str, np.ndarray]:
    return loadmat(root / "xlsa17/data/SYN" / name)


def creature(**changes: str) -> Creature:
    return Creature({trait: names[0] for trait, names in TRAITS.items()} | changes)


def test_every_byte_follows_from_the_options(root: Path, tmp_path: Path) -> None:
    """The root was drawn by two other processes."""
    classes = creature_classes(0)
    drawings = synthetic._drawings(classes, PER_CLASS)
    synthetic._write_layout(tmp_path, classes, drawings, PER_CLASS, 0)
    for drawing in drawings[::20]:
        path = tmp_path / "SYN" / "images" / drawing.path
        path.parent.mkdir(parents=True)
        synthetic._draw(tmp_path, SIZE, 0, drawing)
    again = files(tmp_path)
    assert len(again) == 4 + COUNT // 20 and again.items() <= files(root).items()
    assert not np.array_equal(classes.probabilities, creature_classes(1).probabilities)
    synthetic._draw(tmp_path, SIZE, 1, drawing)
    assert path.read_bytes() != (root / "SYN" / "images" / drawing.path).read_bytes(), "other seeds, other pictures"


def test_files_have_the_published_shapes_and_types(root: Path) -> None:
    images, splits = mat(root, "res101.mat"), mat(root, "att_splits.mat")
    assert images["image_files"].shape == images["labels"].shape == (COUNT, 1)
    assert images["labels"].dtype == np.float64 and set(images["labels"].ravel()) == set(range(1, 41))
    assert splits["att"].shape == splits["original_att"].shape == (len(ATTRIBUTE_NAMES), 40)
    assert splits["allclasses_names"].shape == (40, 1)
    assert all(splits[name].dtype == np.float64 and splits[name].shape[1] == 1 for name in LISTS)
    np.testing.assert_allclose(np.linalg.norm(splits["att"], axis=0), 1.0)
    assert splits["original_att"].min() >= 0 and splits["original_att"].max() <= 1
    names = [str(cell[0]) for cell in splits["allclasses_names"].ravel()]
    assert names != sorted(names), "the order of the columns is not that of the folders"
    for listed, label in zip(images["image_files"].ravel(), images["labels"].ravel(), strict=True):
        path = str(listed[0]).partition("/SYN/images/")[2]
        assert path.split("/")[0] == names[int(label) - 1]
        with Image.open(root / "SYN" / "images" / path) as image:
            assert image.size == (SIZE, SIZE)


def test_splits_share_out_the_images_and_the_classes(root: Path) -> None:
    splits = mat(root, "att_splits.mat")
    split = {name: splits[name].ravel().astype(int) - 1 for name in LISTS}
    label = mat(root, "res101.mat")["labels"].ravel().astype(int) - 1
    everything = np.concatenate([split["trainval_loc"], split["test_seen_loc"], split["test_unseen_loc"]])
    assert sorted(everything) == list(range(COUNT))
    assert sorted(np.concatenate([split["train_loc"], split["val_loc"]])) == sorted(split["trainval_loc"])
    classes = {name: set(label[split[name]]) for name in LISTS}
    assert [len(classes[name]) for name in LISTS] == [30, 24, 6, 30, 10]
    assert classes["trainval_loc"] == classes["test_seen_loc"]
    assert not classes["train_loc"] & classes["val_loc"]
    assert not classes["trainval_loc"] & classes["test_unseen_loc"]
    per_class = np.bincount(label[split["test_seen_loc"]])
    assert set(per_class[per_class > 0]) == {round(PER_CLASS * 0.2)}


@pytest.mark.parametrize("seed", [0, 1, 4711])
def test_unseen_classes_are_new_combinations_of_attributes_known_from_training(seed: int) -> None:
    classes = creature_classes(seed)
    shares = np.split(classes.probabilities, np.cumsum([len(names) for names in TRAITS.values()])[:-1])
    for share in shares:
        np.testing.assert_allclose(share.sum(axis=0), 1.0)
    table = np.stack([share.argmax(axis=0) for share in shares], axis=1)
    assert len(np.unique(table, axis=0)) == 40
    for trait in range(table.shape[1]):
        assert set(table[classes.unseen, trait]) <= set(table[classes.train, trait])
    assert sorted(np.concatenate([classes.train, classes.val, classes.unseen])) == list(range(40))


@pytest.mark.parametrize(
    ("part", "trait", "one", "other"),
    [
        ("eye", "eye", "red eye ring", "blue eye ring"),
        ("beak", "beak", "yellow beak", "black beak"),
        ("crown", "crown", "green crown", "red crown"),
        ("wing", "wing", "white wing", "blue wing"),
        ("body", "pattern", "plain body", "striped body"),
        ("habitat", "habitat", "snow habitat", "forest habitat"),
    ],
)
def test_an_attribute_changes_the_pixels_of_its_part(part: str, trait: str, one: str, other: str) -> None:
    for seed in range(2):
        first, second = (
            draw_creature(creature(**{trait: value}), 64, np.random.default_rng(seed)) for value in (one, other)
        )
        box = np.array(first.boxes[part])
        left, top, right, bottom = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)
        changed = np.abs(first.pixels.astype(int) - second.pixels.astype(int)).max(axis=2) > 40
        inside = changed[top:bottom, left:right].sum()
        assert inside >= 8
        # A pixel of outline may stick out; the head takes the body's colour.
        assert part in ("habitat", "body") or inside > 0.9 * changed.sum()


def test_attributes_and_boxes_are_stored_for_every_image(root: Path) -> None:
    parts = json.loads((root / "SYN" / "parts.json").read_text())
    assert {f"SYN/images/{path}" for path in parts} == {name for name in files(root) if name.endswith(".jpg")}
    for part in parts.values():
        assert [name for name in ATTRIBUTE_NAMES if name in part["attributes"]] == part["attributes"]
        assert set(part["boxes"]) == set(PARTS)
        for left, top, right, bottom in part["boxes"].values():
            assert 0 <= left <= right <= SIZE and 0 <= top <= bottom <= SIZE


def test_made_once_and_never_over_other_files(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_synthetic(root, per_class=PER_CLASS, size=SIZE, progress=lambda done, total: pytest.fail("drawn again"))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(UserError, match="other options"):
        make_synthetic(root, seed=9, per_class=PER_CLASS, size=SIZE)
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        make_synthetic(tmp_path, per_class=PER_CLASS, size=SIZE)
    assert files(tmp_path) == {"letter.txt": b"keep me"}
    (tmp_path / SYNTHETIC_MARKER).write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        make_synthetic(tmp_path, per_class=PER_CLASS, size=SIZE)


def test_failures_and_wrong_options_leave_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "root", per_class=PER_CLASS, size=SIZE, progress=fail)
    for option in ({"per_class": 4}, {"size": 16}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(option))):
            make_synthetic(tmp_path / "root", **({"per_class": PER_CLASS, "size": SIZE} | option))
    assert not list(tmp_path.iterdir())
