"""The embedded benchmark: deterministic, in the published layout, and drawn as its attributes say."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from mgmrn.data.xlsa17 import LISTS, SYNTHETIC_MARKER, load_benchmark
from mgmrn.errors import UserError
from mgmrn.makers.drawing import PARTS, TRAITS, Creature, draw_creature
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, creature_classes, make_synthetic

PER_CLASS, SIZE = 5, 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("made") / "root", per_class=PER_CLASS, size=SIZE, workers=2)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def creature(**changes: str) -> Creature:
    return Creature({trait: names[0] for trait, names in TRAITS.items()} | changes)


def test_every_byte_follows_from_the_options(root: Path, tmp_path: Path) -> None:
    """The root was drawn by two other processes."""
    again = files(make_synthetic(tmp_path / "again", per_class=PER_CLASS, size=SIZE))
    assert again == files(root) and len(again) > 40 * PER_CLASS
    other = files(make_synthetic(tmp_path / "other", per_class=PER_CLASS, size=SIZE, seed=1))
    pictures = [name for name in again if name.endswith(".jpg")]
    assert not any(other[name] == again[name] for name in pictures if name in other), "other seeds, other pictures"
    assert not np.array_equal(creature_classes(0).probabilities, creature_classes(1).probabilities)


def test_the_doctor_finds_no_fault_and_the_splits_have_the_documented_numbers_of_classes(root: Path) -> None:
    config = BenchmarkConfig(name="SYN")
    assert [one for one in verify(root, config) if one.level == "error"] == []
    benchmark = load_benchmark(root, config)
    assert [len(set(benchmark.labels[benchmark.lists[name]])) for name in LISTS] == [30, 24, 6, 30, 10]
    assert list(benchmark.class_names) != sorted(benchmark.class_names), "columns are not in the order of the folders"


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


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    interrupt = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "root", per_class=PER_CLASS, size=SIZE, progress=interrupt)
    assert not list(tmp_path.iterdir())
