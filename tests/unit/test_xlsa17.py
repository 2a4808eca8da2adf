"""The xlsa17 loader and its pitfalls (METHOD: class order, overlapping lists, missing lists, zero word vectors, pickles)."""

import os
import pickle
import warnings

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.xlsa17 import load_benchmark, load_word_vectors, relative_image_path
from mgmrn.errors import UserError
from tests.tiny import ATTRIBUTES, CLASSES, SEEN, UNSEEN, VAL, WORD_LENGTH, lists, write_benchmark

TINY = BenchmarkConfig(name="TINY")


def edit_mat(path, **changed):
    content = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    for name, value in changed.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    savemat(path, content)


def garble(path):
    """Breaks what scipy unpacks, of which zlib complains in its own way."""
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(20) + content[220:])


def splits_file(root):
    return root / "xlsa17/data/TINY/att_splits.mat"


def test_reads_what_was_written(tmp_path):
    benchmark = load_benchmark(write_benchmark(tmp_path, pictures=False), TINY)
    assert benchmark.attributes.shape == (CLASSES, ATTRIBUTES) and benchmark.attributes.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(benchmark.attributes, axis=1), 1, rtol=1e-6)
    assert benchmark.word_vectors.shape == (ATTRIBUTES, WORD_LENGTH)
    assert tuple(benchmark.seen_classes) == SEEN and tuple(benchmark.unseen_classes) == UNSEEN
    for name, expected in lists().items():
        np.testing.assert_array_equal(benchmark.lists[name], expected, err_msg=name)


def test_class_order_is_that_of_the_file_not_of_the_names(tmp_path):
    benchmark = load_benchmark(write_benchmark(tmp_path, pictures=False), TINY)
    assert benchmark.class_names[0] == "009.Class_0" and list(benchmark.class_names) != sorted(benchmark.class_names)
    for file, label in zip(benchmark.image_files, benchmark.labels, strict=True):
        assert file.split("/")[1] == benchmark.class_names[label]


@pytest.mark.parametrize(
    ("listed", "name", "expected"),
    [
        ("/BS/x/CUB_200_2011/CUB_200_2011/images/001.A/a.jpg", "CUB", "CUB_200_2011/images/001.A/a.jpg"),
        ("/BS/x/Animals_with_Attributes2//JPEGImages/ox/1.jpg", "AWA2", "Animals_with_Attributes2/JPEGImages/ox/1.jpg"),
        ("/BS/x/data/SUN/images/a/abbey/s.jpg", "SUN", "images/a/abbey/s.jpg"),
        ("C:\\data\\SUN\\images\\a\\s.jpg", "SUN", "images/a/s.jpg"),
        ("fox/1.jpg", "OWN", "fox/1.jpg"),
        ("images/fox/1.jpg", "OWN", "images/fox/1.jpg"),
        ("/images/fox/1.jpg", "OWN", "images/fox/1.jpg"),
    ],
)
def test_makers_paths_become_relative(listed, name, expected):
    assert relative_image_path(listed, name) == expected


@pytest.mark.parametrize("listed", ["/a/images/../../../etc/passwd", "/somewhere/else/1.jpg"])
def test_paths_that_lead_elsewhere_are_refused(listed):
    with pytest.raises(UserError):
        relative_image_path(listed, "OWN")


def test_train_list_that_overlaps_test_images_is_rebuilt(tmp_path):
    # Early releases list all images of the train classes, those of test_seen included.
    overlapping = np.concatenate([lists()["train_loc"], lists()["test_seen_loc"][:2]])
    benchmark = load_benchmark(write_benchmark(tmp_path, pictures=False, train_loc=overlapping), TINY)
    np.testing.assert_array_equal(benchmark.lists["train_loc"], lists()["train_loc"])


def test_missing_train_and_val_lists_are_made_class_by_class(tmp_path):
    root = write_benchmark(tmp_path, pictures=False)
    edit_mat(splits_file(root), train_loc=None, val_loc=None)
    benchmark = load_benchmark(root, TINY)
    train, val = benchmark.lists["train_loc"], benchmark.lists["val_loc"]
    np.testing.assert_array_equal(np.union1d(train, val), np.sort(lists()["trainval_loc"]))
    train_classes, val_classes = set(benchmark.labels[train]), set(benchmark.labels[val])
    assert len(val_classes) == 2 and not train_classes & val_classes


def test_attributes_and_original_attributes_differ_by_a_factor_that_is_forgotten(tmp_path):
    root = write_benchmark(tmp_path, pictures=False)
    plain = load_benchmark(root, TINY).attributes
    edit_mat(splits_file(root), att=loadmat(splits_file(root))["original_att"])
    np.testing.assert_allclose(load_benchmark(root, TINY).attributes, plain, rtol=1e-6)


def test_a_word_vector_of_zeros_is_a_warning(tmp_path):
    vectors = np.ones((ATTRIBUTES, WORD_LENGTH))
    vectors[4] = 0
    root = write_benchmark(tmp_path, pictures=False, word_vectors=vectors)
    with pytest.warns(UserWarning, match=r"\[4\]"):
        assert not load_benchmark(root, TINY).word_vectors[4].any()


class Attack:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("wrap", [lambda attack: attack, lambda attack: {"x": [attack]}])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, wrap):
    path, canary = tmp_path / "w2v.pkl", tmp_path / "canary"
    path.write_bytes(pickle.dumps(wrap(Attack(canary))))
    with pytest.raises(UserError, match="mkdir"):
        load_word_vectors(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists(), "the attack works where nothing guards"


def test_an_array_of_objects_cannot_smuggle_code(tmp_path):
    path, canary = tmp_path / "w2v.pkl", tmp_path / "canary"
    path.write_bytes(pickle.dumps(np.array([[Attack(canary)]], dtype=object)))
    with pytest.raises(UserError):
        load_word_vectors(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_arrays_of_all_protocols_load(tmp_path, protocol, dtype):
    path = tmp_path / "w2v.pkl"
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    path.write_bytes(pickle.dumps(vectors, protocol=protocol))
    np.testing.assert_allclose(load_word_vectors(path), vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "xlsa17/data/TINY/res101.mat").unlink(), "res101.mat of TINY does not exist"),
        (lambda root: splits_file(root).write_bytes(b"not a mat"), "not a readable MATLAB"),
        (lambda root: splits_file(root).write_bytes(splits_file(root).read_bytes()[:500]), "att_splits.mat"),
        (lambda root: garble(splits_file(root)), "not a readable MATLAB"),
        (lambda root: edit_mat(splits_file(root), att=None), "lacks att"),
        (lambda root: edit_mat(splits_file(root), att=np.zeros((ATTRIBUTES, CLASSES))), "all zero"),
        (lambda root: edit_mat(splits_file(root), att=np.ones((ATTRIBUTES, 4))), "class names"),
        (lambda root: edit_mat(splits_file(root), trainval_loc=[[999.0]]), "points to image 999"),
        (lambda root: edit_mat(splits_file(root), trainval_loc=[[1.5]]), "whole numbers"),
        (lambda root: edit_mat(splits_file(root), test_unseen_loc=[[1.0]]), "trainval_loc"),
        (lambda root: (root / "w2v/TINY_attribute.pkl").unlink(), "word vectors cannot be read"),
        (lambda root: (root / "w2v/TINY_attribute.pkl").write_bytes(pickle.dumps(np.ones((2, 3)))), "2 word vectors"),
        (lambda root: (root / "w2v/TINY_attribute.pkl").write_bytes(b""), "not a plain pickled array"),
    ],
)
def test_a_broken_data_set_is_one_clear_sentence(tmp_path, break_it, message):
    root = write_benchmark(tmp_path, pictures=False)
    break_it(root)
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("error")
        load_benchmark(root, TINY)


def test_a_missing_data_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_benchmark(tmp_path / "nowhere", TINY)


def test_the_digest_changes_with_anything_that_matters(tmp_path):
    def digest(folder, **changed):
        return load_benchmark(write_benchmark(tmp_path / folder, pictures=False, **changed), TINY).digest

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir(), (tmp_path / "d").mkdir()
    plain = digest("a")
    assert plain == digest("b"), "and with nothing else, such as the place"
    assert plain != digest("c", word_vectors=np.ones((ATTRIBUTES, WORD_LENGTH)))
    assert plain != digest("d", test_seen_loc=lists()["test_seen_loc"][1:])


def test_val_classes_are_the_listed_ones():
    assert set(lists()["val_loc"] // 6) == set(VAL)
