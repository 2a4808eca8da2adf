"""The xlsa17 loader and its pitfalls: class order, overlapping and missing lists, zero word vectors, pickles, names."""

import os
import pickle
import warnings

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.xlsa17 import attribute_names, load_benchmark, load_word_vectors, relative_image_path
from mgmrn.errors import UserError
from tests.payload import Payload
from tests.tiny import ATTRIBUTES, CLASSES, SEEN, UNSEEN, WORD_LENGTH, lists, write_benchmark

TINY = BenchmarkConfig(name="TINY")
SPLITS, WORDS = "xlsa17/data/TINY/att_splits.mat", "w2v/TINY_attribute.pkl"
NAMES = ("has_bill_shape::curved_(up_or_down)", "sailing/ boating", "red")


@pytest.fixture
def root(tmp_path):
    return write_benchmark(tmp_path, pictures=False)


def edit_mat(path, **changed):
    content = {name: value for name, value in loadmat(path).items() if not name.startswith("__")} | changed
    savemat(path, {name: value for name, value in content.items() if value is not None})


def test_a_benchmark_is_read_as_it_was_written(root):
    benchmark = load_benchmark(root, TINY)
    assert benchmark.attributes.shape == (CLASSES, ATTRIBUTES) and benchmark.attributes.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(benchmark.attributes, axis=1), 1, rtol=1e-6)
    assert benchmark.word_vectors.shape == (ATTRIBUTES, WORD_LENGTH)
    for name, classes in (("trainval_loc", SEEN), ("test_unseen_loc", UNSEEN)):
        assert tuple(np.unique(benchmark.labels[benchmark.lists[name]])) == classes
    for name, expected in lists().items():
        np.testing.assert_array_equal(benchmark.lists[name], expected, err_msg=name)
    # The order of the classes is that of the file, not of the names.
    assert benchmark.class_names[0] == "009.Class_0" and list(benchmark.class_names) != sorted(benchmark.class_names)
    for file, label in zip(benchmark.image_files, benchmark.labels, strict=True):
        assert file.split("/")[1] == benchmark.class_names[label]
    # `att` and `original_att` differ by a factor that does not matter.
    edit_mat(root / SPLITS, att=loadmat(root / SPLITS)["original_att"])
    np.testing.assert_allclose(load_benchmark(root, TINY).attributes, benchmark.attributes, rtol=1e-6)


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
def test_listed_paths_become_relative(listed, name, expected):
    assert relative_image_path(listed, name) == expected
    for outside in ("/a/images/../../../etc/passwd", "/somewhere/else/1.jpg"):
        with pytest.raises(UserError):
            relative_image_path(outside, "OWN")


def test_train_and_val_lists_that_overlap_test_images_or_are_missing_are_made_anew(tmp_path, root):
    overlapping = np.concatenate([lists()["train_loc"], lists()["test_seen_loc"][:2]])
    benchmark = load_benchmark(write_benchmark(tmp_path, pictures=False, train_loc=overlapping), TINY)
    np.testing.assert_array_equal(benchmark.lists["train_loc"], lists()["train_loc"])
    edit_mat(root / SPLITS, train_loc=None, val_loc=None)
    benchmark = load_benchmark(root, TINY)
    train, val = benchmark.lists["train_loc"], benchmark.lists["val_loc"]
    np.testing.assert_array_equal(np.union1d(train, val), np.sort(lists()["trainval_loc"]))
    train_classes, val_classes = set(benchmark.labels[train]), set(benchmark.labels[val])
    assert len(val_classes) == 2 and not train_classes & val_classes


def test_a_word_vector_of_zeros_is_a_warning(tmp_path):
    vectors = np.ones((ATTRIBUTES, WORD_LENGTH))
    vectors[4] = 0
    root = write_benchmark(tmp_path, pictures=False, word_vectors=vectors)
    with pytest.warns(UserWarning, match=r"\[4\]"):
        assert not load_benchmark(root, TINY).word_vectors[4].any()


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": [x]}, lambda x: np.array([[x]], dtype=object)])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, wrap):
    path, canary = tmp_path / "w2v.pkl", tmp_path / "canary"
    path.write_bytes(pickle.dumps(wrap(Payload(canary))))
    with pytest.raises(UserError, match=rf"word vectors cannot be read: it asks for {os.mkdir.__module__}\.mkdir"):
        load_word_vectors(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists(), "an unsafe reader runs the payload"


@pytest.mark.parametrize(("protocol", "dtype"), [(2, np.float64), (4, np.float32), (5, np.float64)])
def test_plain_arrays_of_all_protocols_load(tmp_path, protocol, dtype):
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    (tmp_path / "w2v.pkl").write_bytes(pickle.dumps(vectors, protocol=protocol))
    np.testing.assert_allclose(load_word_vectors(tmp_path / "w2v.pkl"), vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "xlsa17/data/TINY/res101.mat").unlink(), "res101.mat of TINY does not exist"),
        (lambda root: (root / SPLITS).write_bytes(b"not a mat"), r"att_splits\.mat cannot be read"),
        (lambda root: (root / SPLITS).write_bytes((root / SPLITS).read_bytes()[:500]), "att_splits.mat"),
        (lambda root: edit_mat(root / SPLITS, att=None), "lacks att"),
        (lambda root: edit_mat(root / SPLITS, att=np.zeros((ATTRIBUTES, CLASSES))), "all zero"),
        (lambda root: edit_mat(root / SPLITS, att=np.ones((ATTRIBUTES, 4))), "class names"),
        (lambda root: edit_mat(root / SPLITS, trainval_loc=[[999.0]]), "points to image 999"),
        (lambda root: edit_mat(root / SPLITS, trainval_loc=[[1.5]]), "whole numbers"),
        (lambda root: edit_mat(root / SPLITS, test_unseen_loc=[[1.0]]), "trainval_loc"),
        (lambda root: (root / WORDS).unlink(), "word vectors cannot be read"),
        (lambda root: (root / WORDS).write_bytes(pickle.dumps(np.ones((2, 3)))), "2 word vectors"),
        (lambda root: (root / WORDS).write_bytes(b""), "word vectors cannot be read"),
        (lambda root: root.rename(root.with_name("gone")), "does not exist"),
    ],
)
def test_a_broken_data_set_is_one_clear_sentence(root, break_it, message):
    break_it(root)
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("error")
        load_benchmark(root, TINY)


def test_the_digest_covers_content_and_not_the_place(tmp_path):
    def digest(folder, **changed):
        (tmp_path / folder).mkdir()
        return load_benchmark(write_benchmark(tmp_path / folder, pictures=False, **changed), TINY).digest

    plain = digest("a")
    assert plain == digest("b")
    assert plain != digest("c", word_vectors=np.ones((ATTRIBUTES, WORD_LENGTH)))
    assert plain != digest("d", test_seen_loc=lists()["test_seen_loc"][1:])


@pytest.mark.parametrize("kind", ["attributes.txt", "predicates.txt", "attributes.mat"])
def test_attribute_names_are_read_from_every_published_list(kind, tmp_path):
    path = tmp_path / "attribute_names" / "CUB" / kind
    path.parent.mkdir(parents=True)
    if kind == "attributes.mat":
        savemat(path, {"attributes": np.array(NAMES, dtype=object)[:, None]})
    else:
        gap = "\t" if kind == "predicates.txt" else " "
        path.write_text("\n".join(f"{number}{gap}{name}" for number, name in enumerate(NAMES, 1)) + "\n")
    assert attribute_names(tmp_path, BenchmarkConfig(name="CUB"), 3) == NAMES
    assert attribute_names(tmp_path, BenchmarkConfig(name="CUB100", word_vectors="CUB"), 3) == NAMES


@pytest.mark.parametrize(
    ("file", "content", "count"),
    [
        ("other.txt", b"", 2),
        ("attributes.txt", b"1 red\n2 blue\n3 green\n", 2),
        ("attributes.txt", b"1 red\n2 red\n", 2),
        ("attributes.txt", b"", 1),
        ("attributes.mat", b"broken", 1),
    ],
    ids=["no list", "another length", "a name twice", "empty", "broken"],
)
def test_attributes_without_names_are_numbered(file, content, count, tmp_path):
    path = tmp_path / "attribute_names" / "CUB" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    names = attribute_names(tmp_path, BenchmarkConfig(name="CUB"), count)
    assert names == tuple(f"attribute {number}" for number in range(1, count + 1))
