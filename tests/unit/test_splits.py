"""Two splits and their labels; `tests/unit/test_seal.py` looks for test images in tuning data."""

from pathlib import Path

import numpy as np
import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.splits import check_images_exist, hold_out, load_final, load_tune
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import UserError
from tests.tiny import CLASSES, SEEN, VAL, lists, write_benchmark

TINY = BenchmarkConfig(name="TINY", tune_seen_fraction=0.25)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("data"), pictures=False)


def test_final_is_trainval_against_the_test_lists(root):
    data = load_final(root, TINY)
    np.testing.assert_array_equal(data.train.ids, lists()["trainval_loc"])
    np.testing.assert_array_equal(data.seen.ids, lists()["test_seen_loc"])
    np.testing.assert_array_equal(data.unseen.ids, lists()["test_unseen_loc"])
    assert len(data.classes.names) == CLASSES and tuple(data.classes.seen_ids) == SEEN


def test_tune_trains_on_train_classes_and_takes_val_classes_for_unseen(root):
    data = load_tune(root, TINY)
    assert len(data.classes.names) == len(SEEN) and data.classes.seen.sum() == len(SEEN) - len(VAL)
    np.testing.assert_array_equal(np.union1d(data.train.ids, data.seen.ids), np.sort(lists()["train_loc"]))
    np.testing.assert_array_equal(data.unseen.ids, lists()["val_loc"])
    # One of four images of each class is held out.
    assert set(np.bincount(data.seen.labels)[data.classes.seen_ids]) == {1}
    assert set(np.bincount(data.train.labels)[data.classes.seen_ids]) == {3}
    other = load_tune(root, TINY.model_copy(update={"tune_split_seed": 1}))
    np.testing.assert_array_equal(load_tune(root, TINY).seen.ids, data.seen.ids)
    assert not np.array_equal(data.seen.ids, other.seen.ids), "the split depends on its own seed"


@pytest.mark.parametrize("load", [load_tune, load_final])
def test_labels_are_rows_of_the_class_table(root, load):
    data = load(root, TINY)
    benchmark = load_benchmark(root, TINY)
    for images, seen in ((data.train, True), (data.seen, True), (data.unseen, False)):
        for row, (label, image) in enumerate(zip(images.labels, images.ids, strict=True)):
            name = data.classes.names[label]
            assert name == benchmark.class_names[benchmark.labels[image]] == images.files[row].split("/")[1]
            assert data.classes.seen[label] == seen
            np.testing.assert_array_equal(data.classes.attributes[label], benchmark.attributes[benchmark.labels[image]])


@pytest.mark.parametrize(("members", "fraction", "held"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2)])
def test_hold_out_leaves_something_on_both_sides(members, fraction, held):
    kept, out = hold_out(np.arange(members), np.zeros(members, dtype=np.int64), fraction, 0)
    assert len(out) == held and len(kept) == members - held


def test_missing_pictures_are_counted_and_the_first_is_named(root, tmp_path):
    images = load_final(write_benchmark(tmp_path), TINY).train
    check_images_exist(images)
    for row in (5, 7):
        images.path(row).unlink()
    with pytest.raises(UserError, match=f"2 of {len(images)} pictures are not there, the first is {images.files[5]}"):
        check_images_exist(images)
    with pytest.raises(UserError, match="24 of 24 pictures are not there"):
        check_images_exist(load_final(root, TINY).train)
