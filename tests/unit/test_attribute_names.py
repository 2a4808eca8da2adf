"""What attributes are called, by the makers' lists; without a fitting one they are numbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.xlsa17 import attribute_names

NAMES = ("has_bill_shape::curved_(up_or_down)", "sailing/ boating", "red")


def write_mat(path: Path) -> None:
    cells = np.empty((3, 1), dtype=object)
    cells[:, 0] = NAMES
    savemat(path, {"attributes": cells})


def write(folder: Path, kind: str) -> None:
    gap = "\t" if kind == "predicates.txt" else " "
    lines = "\n".join(f"{number}{gap}{name}" for number, name in enumerate(NAMES, 1))
    if kind == "attributes.mat":
        write_mat(folder / kind)
    else:
        (folder / kind).write_text(lines + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "attribute_names" / "CUB"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("kind", ["attributes.txt", "predicates.txt", "attributes.mat"])
def test_every_makers_list_is_read(kind: str, folder: Path, tmp_path: Path) -> None:
    write(folder, kind)
    assert attribute_names(tmp_path, BenchmarkConfig(name="CUB"), 3) == NAMES
    assert attribute_names(tmp_path, BenchmarkConfig(name="CUB100", word_vectors="CUB"), 3) == NAMES


@pytest.mark.parametrize(
    ("content", "count"),
    [(None, 2), ("1 red\n2 blue\n3 green\n", 2), ("1 red\n2 red\n", 2), ("", 1)],
    ids=["no list", "another length", "a name twice", "empty"],
)
def test_attributes_without_names_are_numbered(content: str | None, count: int, folder: Path, tmp_path: Path) -> None:
    if content is not None:
        (folder / "attributes.txt").write_text(content)
    names = attribute_names(tmp_path, BenchmarkConfig(name="CUB"), count)
    assert names == tuple(f"attribute {number}" for number in range(1, count + 1))


def test_a_broken_list_fails_no_run(folder: Path, tmp_path: Path) -> None:
    (folder / "attributes.mat").write_bytes(b"broken")
    assert attribute_names(tmp_path, BenchmarkConfig(name="CUB"), 1) == ("attribute 1",)
