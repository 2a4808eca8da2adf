"""Stand-ins: the real lists and attributes, restricted and drawn, as a benchmark of another name."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from mgmrn.data.splits import check_images_exist, load_final
from mgmrn.data.xlsa17 import LISTS, STANDIN_MARKER, load_benchmark
from mgmrn.errors import UserError
from mgmrn.makers.standin import attribute_strengths, draw_quilt, make_standin, restrict
from mgmrn.makers.xlsa17_writer import write_images_list, write_splits, write_word_vectors

REAL = Path(__file__).parents[3] / "shared" / "data"
CLASSES, PER_CLASS, ATTRIBUTES = 6, 8, 10
REAL_LISTS, MADE_LISTS = "xlsa17/data/CUB", "xlsa17/data/CUB-standin"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small benchmark under CUB's name: four seen classes, of which one is val, and two unseen."""
    root = tmp_path / "source"
    layout = root / "xlsa17" / "data" / "CUB"
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    rng = np.random.default_rng(0)
    number = np.tile(np.arange(PER_CLASS), CLASSES)
    trainval = rng.permutation(np.flatnonzero((labels < 4) & (number < 6)))
    original = rng.uniform(0, 100, (ATTRIBUTES, CLASSES))
    write_images_list(
        layout,
        [f"/makers/CUB_200_2011/CUB_200_2011/images/{c:03d}.Bird/{i}.jpg" for c, i in zip(labels, number, strict=True)],
        labels,
    )
    write_splits(
        layout,
        [f"{c:03d}.Bird" for c in range(CLASSES)],
        original / np.linalg.norm(original, axis=0),
        original,
        {
            "trainval_loc": trainval,
            "train_loc": trainval[labels[trainval] < 3],
            "val_loc": trainval[labels[trainval] == 3],
            "test_seen_loc": np.flatnonzero((labels < 4) & (number >= 6)),
            "test_unseen_loc": np.flatnonzero(labels >= 4),
        },
    )
    write_word_vectors(root / "w2v" / "CUB_attribute.pkl", rng.normal(size=(ATTRIBUTES, 300)))
    return root


def paths(root: Path, folder: str) -> dict[str, list[str]]:
    """The image files that each list names, in its order, below the folder of the images."""
    images = [str(cell[0]) for cell in loadmat(root / folder / "res101.mat")["image_files"].ravel()]
    images = [re.split("images/|JPEGImages/", image)[-1] for image in images]
    splits = loadmat(root / folder / "att_splits.mat")
    return {name: [images[int(i) - 1] for i in splits[name].ravel()] for name in LISTS}


def jpegs(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}


def make(source: Path, root: Path, **options: Any) -> Path:
    """The stand-in's data root."""
    assert make_standin("cub", source, root, **{"size": 32, **options}) == "CUB-standin"
    return root


def test_the_stand_in_is_a_benchmark_of_its_own(source: Path, tmp_path: Path) -> None:
    root = make(source, tmp_path / "root")
    assert paths(root, MADE_LISTS) == paths(source, REAL_LISTS)
    assert len(jpegs(root)) == CLASSES * PER_CLASS
    config = BenchmarkConfig(name="CUB-standin")
    benchmark = load_benchmark(root, config)
    assert {f"CUB-standin/{file}" for file in benchmark.image_files} == set(jpegs(root))
    with Image.open(root / min(jpegs(root))) as image:
        assert image.size == (32, 32)
    assert not [one for one in verify(root, config, threads=1) if one.level == "error"]
    other = load_benchmark(make(source, tmp_path / "other", seed=1), config)
    assert other.digest != benchmark.digest, "the same lists, other pictures"


def test_it_may_share_a_root_with_the_real_lists(source: Path, tmp_path: Path) -> None:
    shared = shutil.copytree(source, tmp_path / "shared")
    make(source, tmp_path / "alone")
    make(shared, shared)
    assert jpegs(shared) == jpegs(tmp_path / "alone")
    assert paths(shared, REAL_LISTS) == paths(source, REAL_LISTS)


def test_restricted_lists_are_the_first_images_of_every_class_and_attributes_stay(source: Path, tmp_path: Path) -> None:
    root = make(source, tmp_path / "root", per_class=2)
    full, few = paths(source, REAL_LISTS), paths(root, MADE_LISTS)
    for name in LISTS:
        assert few[name] == [path for path in full[name] if path in few[name]], name
    of_class = lambda path: path.split("/")[-2]  # noqa: E731
    for name, classes in (("trainval_loc", 4), ("test_seen_loc", 4), ("test_unseen_loc", 2)):
        assert len({of_class(path) for path in few[name]}) == classes
        assert len(few[name]) == 2 * classes
    assert sorted(few["train_loc"] + few["val_loc"]) == sorted(few["trainval_loc"])
    real, made = (loadmat(folder / "att_splits.mat") for folder in (source / REAL_LISTS, root / MADE_LISTS))
    for key in ("att", "original_att", "allclasses_names"):
        np.testing.assert_array_equal(made[key], real[key])
    assert (root / "w2v/CUB-standin_attribute.pkl").read_bytes() == (source / "w2v/CUB_attribute.pkl").read_bytes()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), per_class=st.one_of(st.none(), st.integers(1, 4)))
def test_restriction_keeps_every_class_and_never_mixes_lists(data: st.DataObject, per_class: int | None) -> None:
    count = data.draw(st.integers(3, 40))
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    member = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    names = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
    full = {name: np.flatnonzero(member == number) for number, name in enumerate(names)}
    stray = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    kept, few = restrict({**full, "train_loc": np.array(stray, dtype=int)}, labels, per_class)
    for name in names:
        original = kept[few[name]]
        assert set(original) <= set(full[name])
        assert set(labels[original]) == set(labels[full[name]])
        assert per_class is None or all(np.bincount(labels[original], minlength=1) <= per_class)
    assert set(few["train_loc"]) <= set(few["trainval_loc"])
    assert sorted(np.concatenate([few[name] for name in names])) == list(range(len(kept)))


def test_pictures_follow_the_class_attributes() -> None:
    original = np.random.default_rng(0).uniform(-1, 100, (312, 5))
    strengths = attribute_strengths(original)
    assert strengths.min() == 0.0
    assert strengths.max() == 1.0
    pictures = {
        (c, i): draw_quilt(strengths[c], 64, np.random.default_rng([c, i])).astype(float)
        for c in range(5)
        for i in range(6)
    }
    templates = [np.mean([pictures[c, i] for i in range(3)], axis=0) for c in range(5)]
    for c in range(5):
        for i in range(3, 6):
            assert np.argmin([np.abs(pictures[c, i] - template).mean() for template in templates]) == c
    assert not np.array_equal(pictures[0, 0], pictures[0, 1])


def test_pictures_do_not_depend_on_processes_or_on_what_else_is_kept(source: Path, tmp_path: Path) -> None:
    alone = jpegs(make(source, tmp_path / "alone"))
    many = jpegs(make(source, tmp_path / "many", workers=2))
    few = jpegs(make(source, tmp_path / "few", per_class=1))
    other = jpegs(make(source, tmp_path / "other", seed=1))
    assert many == alone
    assert few.items() < alone.items()
    assert not any(alone[path] == other[path] for path in alone)


def test_made_once_and_never_over_other_files(source: Path, tmp_path: Path) -> None:
    root = make(source, tmp_path / "root", per_class=1)
    drawn: list[int] = []
    make(source, root, per_class=1, progress=lambda done, total: drawn.append(done))
    assert not drawn
    with pytest.raises(UserError, match=r"other options \(per_class\)"):
        make(source, root, per_class=2)
    (root / "CUB-standin" / STANDIN_MARKER).write_text("{")
    with pytest.raises(UserError, match="not readable"):
        make(source, root, per_class=1)
    (root / "CUB-standin" / STANDIN_MARKER).unlink()
    with pytest.raises(UserError, match="not made by this command"):
        make(source, root, per_class=1)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_bad_sources_and_options_are_one_sentence(source: Path, tmp_path: Path) -> None:
    for options in ({"per_class": 0}, {"size": 8}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(options))):
            make_standin("cub", source, tmp_path / "root", **options)
    with pytest.raises(UserError, match=r"SUN lacks res101\.mat"):
        make_standin("sun", source, tmp_path / "root")
    layout = source / "xlsa17/data/CUB"
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    for listed, sentence in (("/elsewhere/1.jpg", "no folder named"), ("/images/../../x.jpg", "leaves the data root")):
        write_images_list(layout, [listed] * len(labels), labels)
        with pytest.raises(UserError, match=sentence):
            make_standin("cub", source, tmp_path / "root")
    (layout / "res101.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable MATLAB"):
        make_standin("cub", source, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real-data bundle in ../shared/data")
@pytest.mark.parametrize(("name", "seen", "unseen"), [("CUB", 150, 50), ("SUN", 645, 72), ("AWA2", 40, 10)])
def test_real_lists_keep_all_classes_and_attributes(name: str, seen: int, unseen: int, tmp_path: Path) -> None:
    root = tmp_path / "root"
    made_name = make_standin(name, REAL, root, per_class=1, size=32)
    few = paths(root, f"xlsa17/data/{made_name}")
    assert len(few["trainval_loc"]) == len(few["test_seen_loc"]) == seen
    assert len(few["test_unseen_loc"]) == unseen
    assert len(few["train_loc"]) + len(few["val_loc"]) == seen
    real, made = (loadmat(r / f"xlsa17/data/{n}/att_splits.mat") for r, n in ((REAL, name), (root, made_name)))
    for key in ("att", "original_att", "allclasses_names"):
        np.testing.assert_array_equal(made[key], real[key])
    check_images_exist(load_final(root, BenchmarkConfig(name=made_name)).unseen)
