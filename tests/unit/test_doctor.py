"""Every fault that is planted in a data set comes back as a finding, all in one list."""

import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from tests.tiny import ATTRIBUTES, CLASSES, PER_CLASS, lists, write_benchmark

CONFIG = BenchmarkConfig(name="TINY")


def change(root, file, **arrays):
    """Rewrites variables of a .mat file; None takes one out."""
    path = root / "xlsa17" / "data" / "TINY" / file
    content = {key: value for key, value in loadmat(path).items() if not key.startswith("__")} | arrays
    savemat(path, {key: value for key, value in content.items() if value is not None})


def splits(**arrays):
    return lambda root: change(root, "att_splits.mat", **arrays)


def images(root):
    return loadmat(root / "xlsa17" / "data" / "TINY" / "res101.mat")


def column(indices):
    return np.asarray(indices, dtype=float)[:, None] + 1


def found(findings, level):
    return {(finding.check, finding.detail) for finding in findings if finding.level == level}


def said(findings, level, check, text):
    return any(where == check and text in detail for where, detail in found(findings, level))


def test_a_sound_data_set_has_nothing_but_ok(tmp_path):
    findings = verify(write_benchmark(tmp_path), CONFIG)
    assert {finding.level for finding in findings} == {"ok"}
    checks = {finding.check for finding in findings}
    assert checks >= {"word vectors", "counts", "labels", "class order", "attributes", "duplicates", "split lists"}
    assert checks >= {"train and val", "pictures", "splits"}


def swap_class_names(root):
    names = loadmat(root / "xlsa17" / "data" / "TINY" / "att_splits.mat")["allclasses_names"]
    change(root, "att_splits.mat", allclasses_names=names[::-1])


def foreign_class_names(root):
    names = np.array([[f"thing {i}"] for i in range(CLASSES)], dtype=object)
    change(root, "att_splits.mat", allclasses_names=names)


def label_beyond(root):
    labels = images(root)["labels"].astype(float)
    labels[0] = CLASSES + 1
    change(root, "res101.mat", labels=labels)


def fewer_labels(root):
    change(root, "res101.mat", labels=images(root)["labels"][:-1])


def listed_twice(first, second):
    def plant(root):
        files = images(root)["image_files"]
        files[second] = files[first]
        change(root, "res101.mat", image_files=files)

    return plant


def path_that_leaves(root):
    files = images(root)["image_files"]
    files[3] = [np.array(["/data/TINY/images/../../secret.png"])]
    change(root, "res101.mat", image_files=files)


def scale_attributes(root):
    att = loadmat(root / "xlsa17" / "data" / "TINY" / "att_splits.mat")["att"]
    att[:, 2] *= 3
    change(root, "att_splits.mat", att=att)


def zero_attributes(root):
    att = loadmat(root / "xlsa17" / "data" / "TINY" / "att_splits.mat")["att"]
    att[:, 2] = 0
    change(root, "att_splits.mat", att=att)


def other_original(root):
    original = loadmat(root / "xlsa17" / "data" / "TINY" / "att_splits.mat")["original_att"]
    change(root, "att_splits.mat", original_att=original[::-1])


def words(vectors):
    return lambda root: (root / "w2v" / "TINY_attribute.pkl").write_bytes(pickle.dumps(vectors))


def truncate(root):
    path = sorted((root / "TINY").rglob("*.png"))[7]
    path.write_bytes(path.read_bytes()[:-200])


def remove(pattern):
    def plant(root):
        for path in sorted(root.rglob(pattern))[:2]:
            path.unlink()

    return plant


def cut_mat(root):
    path = root / "xlsa17" / "data" / "TINY" / "att_splits.mat"
    path.write_bytes(path.read_bytes()[:700])


LISTS = lists()
ZERO_WORD = np.eye(ATTRIBUTES)
ZERO_WORD[3] = 0


@pytest.mark.parametrize(
    ("plant", "level", "check", "text"),
    [
        (swap_class_names, "error", "class order", "classes have another class's images"),
        (foreign_class_names, "warning", "class order", "cannot be checked"),
        (label_beyond, "error", "labels", f"label {CLASSES + 1} is beyond the {CLASSES} classes"),
        (fewer_labels, "error", "counts", f"{CLASSES * PER_CLASS - 1} labels for {CLASSES * PER_CLASS} image files"),
        (listed_twice(0, 5), "error", "duplicates", "1 files are in trainval and test"),
        (listed_twice(0, 1), "warning", "duplicates", "1 files are listed twice"),
        (path_that_leaves, "error", "image paths", "1 cannot be used"),
        (scale_attributes, "warning", "attributes", "1 columns are not of unit length: 007.Class_2"),
        (zero_attributes, "error", "attributes", "all zero or not finite for class 007.Class_2"),
        (other_original, "warning", "attributes", "point elsewhere"),
        (words(np.ones((ATTRIBUTES - 1, 4))), "error", "counts", f"{ATTRIBUTES - 1} word vectors for {ATTRIBUTES}"),
        (words(ZERO_WORD), "warning", "word vectors", "all zeros for attribute 3 "),
        (words(print), "error", "word vectors", "not a plain pickled array"),
        (remove("*.pkl"), "error", "word vectors", "cannot be read"),
        (remove("res101.mat"), "error", "res101.mat", "does not exist"),
        (cut_mat, "error", "att_splits.mat", "att_splits.mat"),
        (splits(att=None, test_seen_loc=None), "error", "att_splits.mat", "lacks att, test_seen_loc"),
        (splits(val_loc=None), "warning", "train and val", "val_loc is missing"),
        (splits(trainval_loc=column([0, 0, *LISTS["trainval_loc"]])), "error", "split lists", "2 images twice"),
        (splits(trainval_loc=column([4, *LISTS["trainval_loc"]])), "error", "split lists", "1 images are in trainval"),
        (splits(trainval_loc=column([6, *LISTS["trainval_loc"]])), "error", "split lists", "unseen classes are in"),
        (splits(trainval_loc=column(LISTS["trainval_loc"][4:])), "error", "split lists", "classes of test_seen_loc"),
        (splits(test_seen_loc=column([9_999])), "error", "split lists", "test_seen_loc points to image 10000"),
        (splits(test_seen_loc=np.array([[0.5]])), "error", "split lists", "other than whole numbers"),
        (splits(train_loc=column([4, 5, *LISTS["train_loc"]])), "warning", "train and val", "train_loc overlaps"),
        (truncate, "error", "pictures", "1 cannot be decoded"),
        (remove("*.png"), "error", "pictures", f"2 of {CLASSES * PER_CLASS} are not below"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, plant, level, check, text):
    plant(write_benchmark(tmp_path))
    findings = verify(tmp_path, CONFIG)
    assert said(findings, level, check, text), findings
    assert all(finding.remedy for finding in findings if finding.level == "error"), findings


def test_several_faults_are_found_at_once(tmp_path):
    write_benchmark(tmp_path)
    for plant in (swap_class_names, scale_attributes, truncate, words(np.ones((2, 4)))):
        plant(tmp_path)
    findings = verify(tmp_path, CONFIG)
    assert {"class order", "counts", "pictures"} <= {check for check, _ in found(findings, "error")}
    assert said(findings, "warning", "attributes", "unit length")


@pytest.mark.parametrize("content", [np.array("text"), np.array([[np.nan]]), np.zeros((0, 0)), {"a": 1}])
@pytest.mark.parametrize("variable", ["att", "allclasses_names", "trainval_loc", "image_files", "labels"])
def test_nonsense_is_a_finding_not_an_exception(tmp_path, variable, content):
    write_benchmark(tmp_path)
    change(tmp_path, "res101.mat" if variable in ("image_files", "labels") else "att_splits.mat", **{variable: content})
    assert found(verify(tmp_path, CONFIG), "error")


def test_a_data_root_that_is_not_there(tmp_path):
    (finding,) = verify(tmp_path / "nowhere", CONFIG)
    assert (finding.level, finding.check) == ("error", "data root")


def test_a_sample_decodes_so_many_and_tells_how_far_it_is(tmp_path):
    told = []
    findings = verify(
        write_benchmark(tmp_path), CONFIG, sample=7, threads=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(i, 7) for i in range(1, 8)]
    assert said(findings, "ok", "pictures", f"7 of {CLASSES * PER_CLASS} decoded")


def test_examining_changes_nothing(tmp_path):
    write_benchmark(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    verify(tmp_path, CONFIG)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def test_a_grey_picture_is_no_fault(tmp_path):
    write_benchmark(tmp_path)
    path = next((tmp_path / "TINY").rglob("*.png"))
    Image.open(path).convert("L").save(path)
    assert not found(verify(tmp_path, CONFIG), "error")
