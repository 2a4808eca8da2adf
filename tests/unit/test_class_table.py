"""Classes described when a question is asked: by a table, by JSON, by vectors; each mistake is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mgmrn.data.class_table import classes_from_json, read_class_table
from mgmrn.errors import UserError

KNOWN = ("stripes", "hooves", "beak")


def write(path: Path, content: str | bytes | np.ndarray) -> Path:
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.csv", "class, beak,stripes,hooves\nzebra,0,1,.5\n\nowl,1,0,0\n", ("zebra", "owl")),
        ("a.csv", "\ufeffclass,stripes,hooves,beak\nzebra,1,.5,0\nowl,0,0,1\n", ("zebra", "owl")),
        ("a.json", json.dumps({"zebra": [1, 0.5, 0], "owl": [0, 0, 1]}), ("zebra", "owl")),
        (
            "a.json",
            json.dumps(
                {"zebra": {"beak": 0, "hooves": 0.5, "stripes": 1}, "owl": {"beak": 1, "hooves": 0, "stripes": 0}}
            ),
            ("zebra", "owl"),
        ),
        ("a.npy", np.array([[1, 0.5, 0], [0, 0, 1]]), ("class 1", "class 2")),
    ],
)
def test_all_ways_say_the_same(name: str, content: str | np.ndarray, names: tuple[str, ...], tmp_path: Path) -> None:
    given = read_class_table(write(tmp_path / name, content))
    assert given.names == names
    np.testing.assert_array_equal(given.attributes(KNOWN), np.float32([[1, 0.5, 0], [0, 0, 1]]))


def test_a_vector_is_one_class(tmp_path: Path) -> None:
    given = read_class_table(write(tmp_path / "a.npy", np.array([1, 2, 3])))
    assert given.attributes(KNOWN).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "class,stripes,tail\nzebra,1,1\n", r"lacks hooves, beak and has unknown tail .*a\.csv"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,1\n", "row 2 has 3 cells, the head has 4"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,much,1\n", "no number.*much.*class zebra"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,0,0,0\n", "class zebra are all zero"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,nan,0\n", "class zebra are all zero or not finite"),
        ("a.csv", "class,stripes,hooves,beak\nzebra,1,1,1\nzebra,1,1,1\n", "the class zebra is given twice"),
        ("a.csv", "class,stripes,stripes,beak\nzebra,1,1,1\n", "the attribute stripes is given twice"),
        ("a.csv", "class,stripes,hooves,beak\n", "no head and rows"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
        ("a.csv", "class,stripes\nzebra," + "1" * 200_000, "cannot be read: field larger"),
        ("a.json", "[1, 2]", "no JSON object"),
        ("a.json", '{"zebra": [1, 2]}', "the class zebra has 2 attributes instead of 3"),
        ("a.json", '{"zebra": {"stripes": 1}, "owl": {"beak": 1}}', "do not all name the same attributes"),
        ("a.json", '{"zebra": [1, null, 2]}', "no number"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.npy", np.zeros((2, 3, 4)), "3-dimensional"),
        ("a.npy", np.array(["x"]), "not U × S numbers"),
        ("a.npy", b"text", "no array of numbers"),
        ("a.npy", b"", "no array of numbers"),
        ("a.xlsx", "x", "ends in .csv, .json or .npy"),
    ],
)
def test_mistakes_are_named(name: str, content: str | bytes | np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_class_table(write(tmp_path / name, content)).attributes(KNOWN)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="no array of numbers"):
        read_class_table(tmp_path / "a.npy")


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_class_table(tmp_path / "gone.csv")


def test_no_class_at_all() -> None:
    with pytest.raises(UserError, match="no JSON object with an entry per class"):
        classes_from_json("{}", "classes")
