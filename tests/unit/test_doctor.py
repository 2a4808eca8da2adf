"""Verification of a data set: every planted fault is a finding, all in one list."""

import pickle
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from tests.tiny import ATTRIBUTES, CLASSES, PER_CLASS, lists, write_benchmark

CONFIG = BenchmarkConfig(name="TINY")
LISTS = lists()
IMAGES = CLASSES * PER_CLASS


def content(root, file):
    path = root / "xlsa17" / "data" / "TINY" / file
    return {key: value for key, value in loadmat(path).items() if not key.startswith("__")}


def changed(file, **arrays):
    """Rewrites variables of a .mat file: None removes one, a function changes it in place or returns another."""

    def plant(root):
        found = content(root, file)
        for name, value in arrays.items():
            if callable(value):
                result = value(found[name])
                value = found[name] if result is None else result
            found[name] = value
        savemat(root / "xlsa17" / "data" / "TINY" / file, {key: one for key, one in found.items() if one is not None})

    return plant


splits, images = partial(changed, "att_splits.mat"), partial(changed, "res101.mat")


def put(index, value):
    return lambda array: array.__setitem__(index, value)


def column(indices):
    return np.asarray(indices, dtype=float)[:, None] + 1


def words(vectors):
    return lambda root: (root / "w2v" / "TINY_attribute.pkl").write_bytes(pickle.dumps(vectors))


def cut(pattern, end):
    def plant(root):
        path = max(root.rglob(pattern))
        path.write_bytes(path.read_bytes()[:end])

    return plant


def one_colour(root):
    Image.new("RGB", (9, 9)).save(next(root.rglob("*.png")))


def remove(pattern):
    return lambda root: [path.unlink() for path in sorted(root.rglob(pattern))[:2]]


def said(findings, level, check, text):
    return any((one.level, one.check) == (level, check) and text in one.detail for one in findings)


def test_a_sound_data_set_has_nothing_but_ok_and_is_not_changed(tmp_path):
    write_benchmark(tmp_path)
    grey = next((tmp_path / "TINY").rglob("*.png"))
    Image.open(grey).convert("L").save(grey)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    findings = verify(tmp_path, CONFIG)
    assert {finding.level for finding in findings} == {"ok"}
    checks = {"word vectors", "counts", "labels", "class order", "attributes", "duplicates", "split lists"}
    assert {finding.check for finding in findings} >= checks | {"train and val", "pictures", "splits"}
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


FOREIGN = np.array([[f"thing {i}"] for i in range(CLASSES)], dtype=object)
SWAPPED = splits(allclasses_names=lambda names: names[::-1])
ZEROS = splits(att=put((slice(None), 2), 0))
SCALED = splits(att=lambda att: att.__setitem__((slice(None), 2), 3 * att[:, 2]))
LEAVING = [np.array(["/data/TINY/images/../../secret.png"])]
ZERO_WORD = np.eye(ATTRIBUTES)
ZERO_WORD[3] = 0


@pytest.mark.parametrize(
    ("plant", "level", "check", "text"),
    [
        (SWAPPED, "error", "class order", "classes have another class's images"),
        (splits(allclasses_names=FOREIGN), "warning", "class order", "cannot be checked"),
        (images(labels=put(0, CLASSES + 1)), "error", "labels", f"label {CLASSES + 1} is beyond the {CLASSES} classes"),
        (images(labels=lambda labels: labels[:-1]), "error", "counts", f"{IMAGES - 1} labels for {IMAGES} image files"),
        (images(image_files=lambda files: put(5, files[0])(files)), "error", "duplicates", "1 files are in trainval"),
        (images(image_files=put(3, LEAVING)), "error", "image paths", f"1 of {IMAGES} listed paths cannot be used"),
        (SCALED, "warning", "attributes", "1 columns are not of unit length: 007.Class_2"),
        (ZEROS, "error", "attributes", "all zero, not finite or out of range for class 007.Class_2"),
        (splits(original_att=lambda original: original[::-1]), "warning", "attributes", "point elsewhere"),
        (words(np.ones((ATTRIBUTES - 1, 4))), "error", "counts", f"{ATTRIBUTES - 1} word vectors for {ATTRIBUTES}"),
        (words(ZERO_WORD), "warning", "word vectors", "all zeros for attribute 3 "),
        (words(print), "error", "word vectors", "cannot be read: it asks for builtins.print"),
        (remove("*.pkl"), "error", "word vectors", "cannot be read"),
        (remove("res101.mat"), "error", "res101.mat", "does not exist"),
        (cut("att_splits.mat", 700), "error", "att_splits.mat", "att_splits.mat"),
        (splits(att=None, test_seen_loc=None), "error", "att_splits.mat", "lacks att, test_seen_loc"),
        (splits(val_loc=None), "warning", "train and val", "val_loc is missing"),
        (splits(trainval_loc=column([0, 0, *LISTS["trainval_loc"]])), "error", "split lists", "2 images twice"),
        (splits(trainval_loc=column([4, *LISTS["trainval_loc"]])), "error", "split lists", "1 images are in trainval"),
        (splits(trainval_loc=column([6, *LISTS["trainval_loc"]])), "error", "split lists", "unseen classes are in"),
        (splits(trainval_loc=column(LISTS["trainval_loc"][4:])), "error", "split lists", "classes of test_seen_loc"),
        (splits(test_seen_loc=column([9_999])), "error", "split lists", "test_seen_loc points to image 10000"),
        (splits(test_seen_loc=np.array([[0.5]])), "error", "split lists", "other than whole numbers"),
        (splits(train_loc=column([4, 5, *LISTS["train_loc"]])), "warning", "train and val", "train_loc overlaps"),
        (cut("*.png", -200), "error", "pictures", "5.png: the picture cannot be decoded"),
        (one_colour, "warning", "pictures", "1 have one colour everywhere"),
        (remove("*.png"), "error", "pictures", f"2 of {IMAGES} are not below"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, plant, level, check, text):
    plant(write_benchmark(tmp_path))
    findings = verify(tmp_path, CONFIG)
    assert said(findings, level, check, text), findings
    assert all(finding.remedy for finding in findings if finding.level == "error"), findings


@pytest.mark.parametrize("nonsense", [np.array("text"), np.array([[np.nan]]), np.zeros((0, 0)), {"a": 1}])
def test_nonsense_is_a_finding_not_an_exception(tmp_path, nonsense):
    write_benchmark(tmp_path)
    for variable in ("att", "allclasses_names", "trainval_loc", "image_files", "labels"):
        file = "res101.mat" if variable in ("image_files", "labels") else "att_splits.mat"
        whole = content(tmp_path, file)
        changed(file, **{variable: nonsense})(tmp_path)
        assert "error" in {finding.level for finding in verify(tmp_path, CONFIG)}, variable
        changed(file, **whole)(tmp_path)


def test_an_absent_data_root(tmp_path):
    (finding,) = verify(tmp_path / "nowhere", CONFIG)
    assert (finding.level, finding.check) == ("error", "data root")
