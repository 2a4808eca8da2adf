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
from mgmrn.data.xlsa17 import LISTS, lists_folder, load_benchmark
from mgmrn.errors import UserError
from mgmrn.makers.standin import make_standin, restrict
from mgmrn.makers.xlsa17_writer import write_images_list
from tests.tiny import CLASSES, PER_CLASS, SEEN, UNSEEN, VAL, write_benchmark

STANDIN = BenchmarkConfig(name="CUB-standin")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small benchmark under CUB's name, without pictures."""
    return write_benchmark(tmp_path / "source", "CUB", pictures=False)


def paths(root: Path, name: str) -> dict[str, list[str]]:
    """Image files of each list, in its order, below the folder of the images."""
    images = [str(cell[0]) for cell in loadmat(lists_folder(root, name) / "res101.mat")["image_files"].ravel()]
    images = [re.split("images/|JPEGImages/", image)[-1] for image in images]
    splits = loadmat(lists_folder(root, name) / "att_splits.mat")
    return {key: [images[int(i) - 1] for i in splits[key].ravel()] for key in LISTS}


def drawn(root: Path) -> dict[str, bytes]:
    folder = root / "CUB-standin"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def make(source: Path, root: Path, **options: Any) -> Path:
    assert make_standin("cub", source, root, **{"size": 32, **options}) == "CUB-standin"
    return root


def test_the_stand_in_is_a_benchmark_of_its_own(source: Path, tmp_path: Path) -> None:
    shared = shutil.copytree(source, tmp_path / "shared")
    root = make(source, tmp_path / "root")
    assert paths(root, "CUB-standin") == paths(source, "CUB")
    assert len(drawn(root)) == CLASSES * PER_CLASS
    benchmark = load_benchmark(root, STANDIN)
    assert set(benchmark.image_files) == set(drawn(root))
    with Image.open(root / "CUB-standin" / min(drawn(root))) as image:
        assert image.size == (32, 32)
    assert not [one for one in verify(root, STANDIN) if one.level == "error"]
    other = make(shared, shared, seed=1)
    assert paths(shared, "CUB") == paths(source, "CUB"), "the real lists may share the root"
    assert load_benchmark(other, STANDIN).digest != benchmark.digest, "other pictures of the same lists"
    assert not any(drawn(root)[path] == picture for path, picture in drawn(other).items())


def test_restricted_lists_are_the_first_images_of_every_class_and_attributes_stay(source: Path, tmp_path: Path) -> None:
    root = make(source, tmp_path / "root", per_class=2, workers=2)
    full, few = paths(source, "CUB"), paths(root, "CUB-standin")
    for name in LISTS:
        assert few[name] == [path for path in full[name] if path in few[name]], name
    for name, classes in (("trainval_loc", SEEN), ("test_seen_loc", SEEN), ("test_unseen_loc", UNSEEN)):
        assert len({path.split("/")[-2] for path in few[name]}) == len(classes)
        assert len(few[name]) == 2 * len(classes)
    assert sorted(few["train_loc"] + few["val_loc"]) == sorted(few["trainval_loc"])
    assert len(few["val_loc"]) == 2 * len(VAL)
    real, made = (
        loadmat(lists_folder(*place) / "att_splits.mat") for place in ((source, "CUB"), (root, "CUB-standin"))
    )
    for key in ("att", "original_att", "allclasses_names"):
        np.testing.assert_array_equal(made[key], real[key])
    assert (root / "w2v/CUB-standin_attribute.pkl").read_bytes() == (source / "w2v/CUB_attribute.pkl").read_bytes()
    # Pictures depend neither on processes nor on the other pictures.
    assert drawn(root).items() < drawn(make(source, tmp_path / "alone")).items()


@settings(max_examples=25)
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


def test_bad_sources_are_one_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SUN lacks res101\.mat"):
        make_standin("sun", source, tmp_path / "root")
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    for listed, sentence in (("/elsewhere/1.jpg", "no folder named"), ("/images/../../x.jpg", "leaves the data root")):
        write_images_list(lists_folder(source, "CUB"), [listed] * len(labels), labels)
        with pytest.raises(UserError, match=sentence):
            make_standin("cub", source, tmp_path / "root")
    assert not (tmp_path / "root").exists()
