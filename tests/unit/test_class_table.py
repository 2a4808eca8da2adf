"""Class tables in every format give the same classes; each mistake is named, more of them in wrong_uses.yaml."""

import gzip
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


TABLE = "class,stripes,hooves,beak\nzebra,1,.5,0\nowl,0,0,1\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "class, beak,stripes,hooves\nzebra,0,1,.5\n\nowl,1,0,0\n"),
        ("a.csv", "\ufeff" + TABLE),
        ("a.csv", TABLE.encode("utf-16")),
        ("a.csv", gzip.compress(TABLE.encode(), mtime=0)),
        ("a.csv", TABLE.replace("\n", "\r\n")),
        ("a.csv", TABLE.replace("\n", "\r")),
        ("a.csv", TABLE.replace(",", ";")),
        ("a.csv", TABLE.replace(",", ";").replace(".5", "0,5")),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.csv", TABLE.replace("zebra", '" zebra\u3000"').replace("beak", '"beak "')),
        ("a.json", json.dumps({"zebra": [1, 0.5, 0], "owl": [0, False, "1"]})),
        ("a.json", "\ufeff" + json.dumps(BY_NAME)),
        ("a.npy", np.array([[1, 0.5, 0], [0, 0, 1]])),
    ],
)
def test_all_formats_give_the_same_classes(name: str, content: Content, tmp_path: Path) -> None:
    given = read_class_table(write(tmp_path / name, content))
    assert given.names == (("class 1", "class 2") if name == "a.npy" else BIRDS)
    np.testing.assert_array_equal(given.attributes(KNOWN), np.float32([[1, 0.5, 0], [0, 0, 1]]))


def one_class(*cells: object) -> str:
    return "class,stripes,hooves,beak\nzebra," + ",".join(map(str, cells))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "class,stripes,tail\nzebra,1,1\n", r"lacks hooves, beak and has unknown tail .*a\.csv"),
        ("a.csv", '\nclass,a,b\n"x\ny",1,1\nzebra,1,1,5\n', r"line 5 has 4 cells, the head has 3 .*a\.csv:5"),
        ("a.csv", one_class(1, "much", 1), "no number.*much.*class zebra"),
        ("a.csv", one_class(1, "nan", 0), "class zebra are all zero, not finite or out of range"),
        ("a.csv", one_class(0, 0, 0), "all zero"),
        ("a.csv", one_class(1e39, 1, 1), "out of range"),
        ("a.csv", one_class(1e-20, 0, 0), "out of range"),
        ("a.csv", "class,a,b\n\u00e9,1,2\ne\u0301,2,1\n", "the class \u00e9 is given twice"),
        ("a.csv", "class,a,\nx,1,2\n", "the attribute name '' is empty"),
        ("a.csv", "class,stripes,stripes,beak\nzebra,1,1,1\n", "the attribute stripes is given twice"),
        ("a.csv", "class,stripes,hooves,beak\n", "no head and rows"),
        ("a.csv", "", "no head and rows"),
        ("a.csv", "class\nzebra\nowl\n", "no head and rows"),
        ("a.csv", 'class,a,b\n"zebra,1,2\n', "cannot be read: unexpected end of data"),
        ("a.csv", "class,a\nzebra,1\n".encode("utf-16-le"), "line 1 of the class table is not UTF-8 text"),
        ("a.csv", "class,stripes\nzebra," + "1" * 200_000, "cannot be read: field larger"),
        ("a.csv", gzip.compress(TABLE.encode(), mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("a.json", "[1, 2]", "no JSON object"),
        ("a.json", '{"zebra": [1, 2]}', "the class zebra has 2 attributes instead of 3"),
        ("a.json", '{"zebra": [1%s, 2, 3]}' % ("0" * 5000), "out of range"),
        ("a.json", '{"\\ud800": [1, 2, 3]}', "does not print"),
        ("a.json", '{"zebra": {"stripes": 1}, "owl": {"beak": 1}}', "do not all name the same attributes"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.npy", np.zeros((2, 3, 4)), "3-dimensional"),
        ("a.npy", np.array([[1j, 1, 1]]), "not U × S numbers"),
        ("a.npy", np.array(["x"]), "not U × S numbers"),
        ("a.npy", np.array([print], dtype=object), "cannot be read"),
        ("a.npy", b"", "cannot be read"),
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
