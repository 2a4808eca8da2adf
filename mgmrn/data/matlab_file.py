"""Reader of MATLAB 5 files (`-v6`, `-v7`), which stays within the bounds of damaged files; scipy's crashes on them.

A file is a header of 128 bytes, then elements: a type, a size and the content, padded to 8 bytes. A variable is an
element of elements: flags with the class, dimensions, name and content; a compressed element holds one variable.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""numpy's types by the type of an element."""
_TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""Encodings by the type of an element."""
_MATRIX, _COMPRESSED = 14, 15
_CELL, _TEXT, _SPARSE = 1, 4, 5
"""Classes of variables; 6 to 15 are numbers."""
_COMPLEX = 0x800
_LARGEST_SPARSE = 10**8
"""Numbers of a sparse matrix that is filled up."""
_NAMED = 512
"""Bytes of a variable that hold its name; MATLAB's have 63 characters at most."""


def read_variables(path: Path, wanted: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The wanted variables as numpy arrays, those of text with a string per row, and the names of all variables.

    Other classes than cells, text and numbers are None. Raises many kinds of exception for a damaged file.
    """
    content = np.memmap(path, mode="r").data
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None or struct.unpack_from(f"{order}H", content, 124)[0] != 0x100:
        raise ValueError("it is no MATLAB 5 file")
    found, names = {}, []
    for kind, element in _elements(content[128:], order):
        head = element[:_NAMED]
        if kind == _COMPRESSED:
            head = memoryview(zlib.decompressobj().decompress(element, _NAMED))[8:]
        parts = _elements(head, order, whole=False)
        name = bytes([next(parts), next(parts), next(parts)][2][1]).decode("latin1")
        names.append(name)
        if name in wanted:
            whole = memoryview(zlib.decompress(element))[8:] if kind == _COMPRESSED else element
            found[name] = _variable(whole, order)
    return found, names


def _elements(content: memoryview, order: str, *, whole: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element; a small one has both in 8 bytes. Raises ValueError for a cut one if `whole`."""
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start = position + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        element = content[start : start + size]
        if whole and len(element) < size:
            raise ValueError("it is cut short")
        yield kind, element
        position = start + size + (0 if kind == _COMPRESSED else -(start + size) % 8)


def _variable(content: memoryview, order: str) -> Any:
    if not content:
        return np.zeros((0, 0))
    parts = _elements(content, order)
    (_, flags), (_, dimensions), _ = next(parts), next(parts), next(parts)
    (kind,) = struct.unpack_from(f"{order}I", flags)
    shape = tuple(np.frombuffer(dimensions, f"{order}i4").tolist())
    if kind & 0xFF == _CELL:
        if 8 * math.prod(shape) > len(content):
            raise ValueError("it has fewer cells than it says")
        cells = np.empty(math.prod(shape), dtype=object)
        for number, (_, cell) in enumerate(parts):
            cells[number] = _variable(cell, order)
        return cells.reshape(shape, order="F")
    if kind & 0xFF == _TEXT:
        return _rows_of_text(*next(parts, (16, memoryview(b""))), shape, order)
    if kind & 0xFF == _SPARSE:
        rows, starts, values = (_numbers(*next(parts), order) for _ in range(3))
        if math.prod(shape) > _LARGEST_SPARSE:
            raise ValueError(f"its sparse matrix is {shape[0]} × {shape[1]}")
        matrix = np.zeros(shape)
        matrix[rows[: len(values)], np.repeat(np.arange(shape[1]), np.diff(starts))] = values
        return matrix
    if not 6 <= kind & 0xFF <= 15:
        return None
    values = _numbers(*next(parts), order).reshape(shape, order="F")
    return values.astype(np.complex128) if kind & _COMPLEX else values


def _numbers(kind: int, content: memoryview, order: str) -> np.ndarray:
    return np.frombuffer(content, order + _NUMBERS[kind])


def _rows_of_text(kind: int, content: memoryview, shape: tuple[int, ...], order: str) -> np.ndarray:
    encoding = _TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    text = bytes(content).decode(encoding)
    if shape[0] == 1 or not text:
        return np.array([text] if text else [], dtype=str)
    return np.array(["".join(row) for row in np.array(list(text)).reshape(shape, order="F")])
