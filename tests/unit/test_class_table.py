"""Class tables in every format give the same classes; each mistake is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mgmrn.data.class_table import classes_from_json, read_class_table
from mgmrn.errors import UserError

KNOWN = ("stripes", "hooves", "beak")
BIRDS = ("zebra", "owl")
BY_NAME = {"zebra": {"beak": 0, "hooves": 0.5, "stripes": 1}, "owl": {"beak": 1, "hooves": 0, "stripes": 0}}

Content = str | bytes | np.ndarray


def write(path: Path, content: Content) -> Path:
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.csv", "class, beak,stripes,hooves\nzebra,0,1,.5\n\nowl,1,0,0\n", BIRDS),
        ("a.csv", "\ufeffclass,stripes,hooves,beak\nzebra,1,.5,0\nowl,0,0,1\n", BIRDS),
        ("a.json", json.dumps({"zebra": [1, 0.5, 0], "owl": [0, 0, 1]}), BIRDS),
        ("a.json", json.dumps(BY_NAME), BIRDS),
        ("a.npy", np.array([[1, 0.5, 0], [0, 0, 1]]), ("class 1", "class 2")),
    ],
)
def test_all_formats_give_the_same_classes(name: str, content: Content, names: tuple[str, ...], tmp_path: Path) -> None:
    given = read_class_table(write(tmp_path / name, content))
    assert given.names == names
    np.testing.assert_array_equal(given.attributes(KNOWN), np.float32([[1, 0.5, 0], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "class,stripes,tail\nzebra,1,1\n", r"lacks hooves, beak and has unknown tail .*a\.csv"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,1\n", "row 2 has 3 cells, the head has 4"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,much,1\n", "no number.*much.*class zebra"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,nan,0\n", "class zebra are all zero or not finite"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,1,1\nzebra,1,1,1\n", "the class zebra is given twice"),
        ("a.csv", "class,stripes,stripes,beak\nzebra,1,1,1\n", "the attribute stripes is given twice"),
        ("a.csv", "class,stripes,hooves,beak\n", "no head and rows"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
        ("a.csv", "class,stripes\nzebra," + "1" * 200_000, "cannot be read: field larger"),
        ("a.json", "[1, 2]", "no JSON object"),
        ("a.json", '{"zebra": [1, 2]}', "the class zebra has 2 attributes instead of 3"),
        ("a.json", '{"zebra": {"stripes": 1}, "owl": {"beak": 1}}', "do not all name the same attributes"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.npy", np.zeros((2, 3, 4)), "3-dimensional"),
        ("a.npy", np.array(["x"]), "not U × S numbers"),
        ("a.npy", np.array([print], dtype=object), "no array of numbers"),
        ("a.npy", b"", "no array of numbers"),
        ("a.xlsx", "x", "ends in .csv, .json or .npy"),
    ],
)
def test_mistakes_are_named(name: str, content: Content, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_class_table(write(tmp_path / name, content)).attributes(KNOWN)


def test_a_vector_is_one_class_and_missing_files_and_empty_objects_are_named(tmp_path: Path) -> None:
    assert read_class_table(write(tmp_path / "a.npy", np.array([1, 2, 3]))).attributes(KNOWN).shape == (1, 3)
    with pytest.raises(UserError, match="cannot be read"):
        read_class_table(tmp_path / "gone.csv")
    with pytest.raises(UserError, match="no JSON object with an entry per class"):
        classes_from_json("{}", "classes")
