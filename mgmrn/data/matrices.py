"""Arrays from files that users bring: MATLAB files, pickled arrays, `.npy` files. No file runs code.

I values of a list, R rows and C columns of a matrix.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from jaxtyping import Float, Int

from mgmrn.data.matlab_file import read_variables
from mgmrn.errors import UserError, some
from mgmrn.reading import unreadable

SHORTEST, LONGEST = 1e-12, 1e18
"""Lengths between which a vector can be scaled to unit length in float32."""
_LARGEST_INDEX = 2**53
"""Up to here doubles hold all whole numbers."""


class _PickledType:
    """Stands for `numpy.dtype` in a pickle, whose own `__setstate__` crashes on damaged bytes."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _PickledArray:
    """Stands for `numpy.ndarray` in a pickle."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    @classmethod
    def from_buffer(cls, content: Any, kind: Any, shape: Any, order: str) -> _PickledArray:
        """Stands for `numpy.frombuffer` of protocol 5."""
        array = cls()
        array.state = (1, shape, kind, order == "F", content)
        return array

    def matrix(self) -> np.ndarray:
        """The array that numpy would have made."""
        _, shape, kind, by_columns, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content
        values = np.frombuffer(content, np.dtype(kind.order + kind.code))
        return values.reshape(shape, order="F" if by_columns else "C")


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of numpy arrays, which refuses every other function that a pickle names."""

    _STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
        ("_codecs", "encode"): codecs.encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _PickledArray for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _PickledArray.from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._STAND_INS[module, name]


def read_pickled_array(path: Path, kind: str) -> Float[np.ndarray, "R C"]:
    """A pickled matrix of floats as float32. Raises UserError for any other content, and for numbers out of range."""
    remedy = "pickle one numpy array of two dimensions and of floats"
    try:
        content = path.read_bytes()
        if any(
            "PUT" in code.name and cast(int, number or 0) > len(content)
            for code, number, _ in pickletools.genops(content)
        ):
            raise pickle.UnpicklingError("it numbers its parts beyond its length")
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        array = found.matrix() if isinstance(found, _PickledArray) else np.zeros(0)
    except Exception as error:  # Malformed pickles raise many kinds of exception.
        raise unreadable(kind, path, error, remedy) from error
    if not (array.ndim == 2 and array.size and array.dtype.kind == "f"):
        raise UserError(f"the {kind} is no matrix of floats", str(path), remedy)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"the {kind} holds NaN, or numbers that are infinite in float32", str(path), remedy)
    return values


def read_npy(path: Path, kind: str) -> np.ndarray:
    """The array of a `.npy` file. Raises UserError for any other content, pickled objects included."""
    try:
        return cast(np.ndarray, np.lib.format.open_memmap(path, mode="r"))
    except Exception as error:  # Malformed headers raise many kinds of exception.
        raise unreadable(kind, path, error, "np.save an array of numbers") from error


def read_mat(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Some variables of a MATLAB 5 file: all of `needed`, and those of `wanted` that it has.

    Raises UserError for a file that is missing or damaged, and for missing variables, with the names of those it has.
    """
    try:
        content, names = read_variables(path, {*needed, *wanted})
    except FileNotFoundError as error:
        hint = "put the xlsa17 Proposed Splits below the data root, or check --data-root and benchmark.name"
        raise UserError(f"{path.name} of {path.parent.name} does not exist", str(path), hint) from error
    except Exception as error:  # Damaged files raise many kinds of exception.
        raise unreadable(f"file {path.name}", path, error, "get it again, or save it with -v7 in MATLAB") from error
    if missing := [name for name in needed if name not in content]:
        message = f"{path.name} lacks {', '.join(missing)}; it holds {some(names, 10) or 'no variable'}"
        raise UserError(message, str(path), "get the Proposed Splits version of it")
    return content


def mat_matrix(value: Any, path: Path, name: str) -> Float[np.ndarray, "R C"]:
    """A matrix of real numbers as doubles. Raises UserError for anything else."""
    matrix = _real_numbers(value, path, name)
    if matrix.ndim != 2:
        raise UserError(f"{name} has {matrix.ndim} dimensions instead of 2", str(path), "save a matrix")
    return matrix


def _real_numbers(value: Any, path: Path, name: str) -> Float[np.ndarray, "R ..."]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        what = "complex numbers" if array.dtype.kind == "c" else "text, cells or structures"
        raise UserError(f"{name} holds {what} instead of real numbers", str(path), "save it as doubles")
    return array.astype(np.float64)


def mat_strings(value: Any, path: Path, name: str) -> list[str]:
    """Strings of a cell array or of the rows of a character matrix, without the blanks that pad them.

    Raises UserError for numbers, empty cells, and cells that hold more than one string.
    """
    array = np.asarray(value)
    strings = []
    for number, cell in enumerate(array.ravel(), start=1):
        while isinstance(cell, np.ndarray) and cell.size == 1:
            cell = cell.ravel()[0]
        if isinstance(cell, np.ndarray) and not cell.size:
            cell = ""
        if not isinstance(cell, str):
            raise UserError(f"entry {number} of {name} is no text", str(path), "save a cell array of strings")
        if not (text := cell.rstrip(" \0")):
            raise UserError(f"entry {number} of {name} is empty", str(path), "give every entry its text")
        strings.append(text)
    return strings


def mat_indices(value: Any, path: Path, name: str, below: int | None = None) -> Int[np.ndarray, " I"]:
    """Whole numbers from 1 to indices from 0. Raises UserError for other numbers, and for an index not `below`."""
    values = _real_numbers(value, path, name).ravel()
    wrong = values[~((values >= 1) & (values < _LARGEST_INDEX) & (values == np.floor(values)))]
    if len(wrong):
        message = f"{name} holds something other than whole numbers from 1, the first is {wrong[0]:g}"
        raise UserError(message, str(path), "count from 1, and list numbers rather than a mask")
    indices = values.astype(np.int64) - 1
    if below is not None and len(indices) and indices.max() >= below:
        message = f"{name} points to image {indices.max() + 1} of {below}"
        raise UserError(message, str(path), "the two .mat files differ")
    return indices


def alike_rows(rows: Float[np.ndarray, "R C"]) -> Int[np.ndarray, " _"]:
    """Rows that have the direction of another row, to six digits; those of one direction follow each other."""
    directions = np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True), 6)
    _, groups, sizes = np.unique(directions, axis=0, return_inverse=True, return_counts=True)
    groups = groups.ravel()
    twins = np.flatnonzero(sizes[groups] > 1)
    return twins[np.argsort(groups[twins], kind="stable")]


def without_direction(rows: Float[np.ndarray, "R C"]) -> Int[np.ndarray, " _"]:
    """Rows that cannot be scaled to unit length: all zero, not finite, or of a length out of range."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
    return np.flatnonzero(~((lengths >= SHORTEST) & (lengths <= LONGEST)))
