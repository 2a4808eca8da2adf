"""Damaged files of every kind that users bring: each reader returns, or raises UserError and nothing else."""

import gzip
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.io import savemat

from mgmrn.checkpoint import load_model
from mgmrn.data.class_table import read_class_table
from mgmrn.data.matrices import mat_indices, mat_matrix, mat_strings, read_mat, read_pickled_array
from mgmrn.errors import UserError
from mgmrn.makers.importing import read_class_names, read_vectors
from mgmrn.tensor_files import read_state_dict
from tests.exported import array_file, write_model, written

TABLE = 'class,red,"long, blue"\n"\u00e9mu",0.5,1\nowl,1e-3,2\n'.encode()
VECTORS = b"3 2\nred 1 2\nBlue 3 4\n. . . 5 6\n"


def matlab(compressed: bool) -> bytes:
    variables = {
        "numbers": np.arange(6.0)[:, None] + 1,
        "cells": np.array([["ab"], ["cd"]], dtype=object),
        "sparse": sparse.csc_matrix(np.eye(3)),
        "text": np.array(["abc", "de "]),
    }
    return written(lambda file: savemat(file, variables, do_compression=compressed))


def read_matlab(path: Path) -> None:
    for name, value in read_mat(path, (), ("numbers", "cells", "sparse", "text")).items():
        for read in (mat_matrix, mat_strings, mat_indices):
            with suppress(UserError):
                read(value, path, name)


def read_table(path: Path) -> None:
    given_classes = read_class_table(path)
    given_classes.attributes(given_classes.columns or ("red", "blue"))


WEIGHTS = {"weight": torch.ones(3, 4), "bias": torch.ones(2)}
ARRAY = np.arange(12.0).reshape(3, 4)
KINDS: dict[str, tuple[Callable[[Path], object], list[bytes]]] = {
    "a.mat": (read_matlab, [matlab(False), matlab(True)]),
    "a.pkl": (lambda path: read_pickled_array(path, "array"), [pickle.dumps(ARRAY, protocol=p) for p in (0, 2, 4)]),
    "a.pth": (
        read_state_dict,
        [
            written(lambda file: torch.save(WEIGHTS, file)),
            written(lambda file: torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)),
        ],
    ),
    "a.csv": (
        read_table,
        [TABLE, TABLE.replace(b",", b";"), TABLE.decode().encode("utf-16"), gzip.compress(TABLE, mtime=0)],
    ),
    "a.json": (read_table, [b'{"owl": {"red": 1, "blue": 2}, "emu": {"red": 2, "blue": 1e3}}', b'{"owl": [1, 2]}']),
    "a.npy": (read_table, [array_file(ARRAY[:, :2])]),
    "v.txt": (lambda path: read_vectors(path, {"red", "blue"}), [VECTORS, gzip.compress(VECTORS, mtime=0)]),
    "u.txt": (read_class_names, [b"owl\n\xc3\xa9mu\r\n"]),
}
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
SOME = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_damaged(name: str, folder: Path, choice: int, edits: list[tuple[float, int, bytes]]) -> None:
    """Reads a file in which some bytes are replaced by others at relative positions."""
    read, contents = KINDS[name]
    content = contents[choice % len(contents)]
    for where, removed, new in edits:
        position = int(where * len(content))
        content = content[:position] + new + content[position + removed :]
    (folder / name).write_bytes(content)
    with suppress(UserError):
        read(folder / name)


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    read, contents = KINDS[name]
    for content in contents:
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
@settings(SOME, max_examples=40)
@given(choice=st.integers(0, 9), edits=EDITS)
def test_nothing_but_a_user_error_escapes(name: str, tmp_path: Path, choice: int, edits: list) -> None:
    read_damaged(name, tmp_path, choice, edits)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
@settings(SOME, max_examples=20_000)
@given(choice=st.integers(0, 9), edits=EDITS)
def test_nothing_but_a_user_error_escapes_for_long(name: str, tmp_path: Path, choice: int, edits: list) -> None:
    read_damaged(name, tmp_path, choice, edits)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(config="{}"),
        lambda state: state.update(config=7),
        lambda state: state.update(network=[1]),
        lambda state: state["network"].update({"head.word_vectors": 3}),
        lambda state: state.update(class_names=["one"]),
    ],
)
def test_a_file_of_plain_values_that_is_no_model_is_refused(change: Callable[[dict], object], tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.pt")
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(UserError, match="is not an exported model"):
        load_model(path)
