"""Tables of classes described by attributes, for predictions among classes of the user's choice.

    .csv     a row per class: its name, then a number per attribute; the head names the attributes, in any order
    .json    {"class": {"attribute": number, …}, …}, or {"class": [number, …], …} in the model's order
    .npy     U × S numbers in the model's order (or S for a single class); the classes are numbered

U classes, S attributes. A row's length does not matter, its direction does: scores are cosines.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mgmrn.errors import UserError, some


@dataclass(frozen=True)
class GivenClasses:
    """Described classes, not yet matched with a model's attributes."""

    names: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    """A row per class."""
    columns: tuple[str, ...] | None
    """Attribute of each number of a row; None: the model's attributes in its order."""
    where: str
    """File or field for errors."""

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("no class is given", self.where, "describe at least one by its attributes")
        if twice := _repeated(self.names):
            raise UserError(f"the class {twice} is given twice", self.where, "leave one of the two out")
        if self.columns is not None and (twice := _repeated(self.columns)):
            raise UserError(f"the attribute {twice} is given twice", self.where, "leave one of the two out")

    def attributes(self, known: Sequence[str]) -> Float[np.ndarray, "U S"]:
        """The classes' attribute vectors in the order of a model's attributes, `known`.

        Raises UserError for missing and unknown attributes, and for rows that are too short, too long, all zero or not
        finite.
        """
        if self.columns is not None:
            missing = [name for name in known if name not in self.columns]
            unknown = [name for name in self.columns if name not in known]
            if missing or unknown:
                parts = [f"lacks {some(missing, 5)}"] if missing else []
                parts += [f"has unknown {some(unknown, 5)}"] if unknown else []
                hint = "name every attribute of the model once, as the model does"
                raise UserError(f"the class table {' and '.join(parts)}", self.where, hint)
        for name, row in zip(self.names, self.rows, strict=True):
            if len(row) != len(known):
                message = f"the class {name} has {len(row)} attributes instead of {len(known)}"
                raise UserError(message, self.where, f"give {len(known)} numbers per class")
        values = np.asarray(self.rows, dtype=np.float32)
        if self.columns is not None:
            values = values[:, [self.columns.index(name) for name in known]]
        for name, row in zip(self.names, values, strict=True):
            if not np.isfinite(row).all() or not row.any():
                raise UserError(f"the attributes of class {name} are all zero or not finite", self.where)
        return values


def read_class_table(path: Path) -> GivenClasses:
    """Reads a file of described classes in the format of its ending.

    Raises UserError when the file is missing, or is no class table.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                return _read_csv(path)
            case ".json":
                return classes_from_json(path.read_text(encoding="utf-8"), str(path))
            case ".npy":
                return _read_array(path)
            case _:
                hint = "a row per class, a column per attribute"
                raise UserError("a class table ends in .csv, .json or .npy", str(path), hint)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the class table cannot be read: {error}", str(path), "check the path") from error


def classes_from_json(text: str, where: str) -> GivenClasses:
    """Classes from the text of a JSON object. Raises UserError, which calls the text `where`, for anything else."""
    hint = 'write {"class": {"attribute": number, …}, …} or {"class": [number, …], …}'
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the classes are no JSON: {error}", where, hint) from error
    if not isinstance(table, dict) or not table:
        raise UserError("the classes are no JSON object with an entry per class", where, hint)
    rows = list(table.values())
    if all(isinstance(row, list) for row in rows):
        return GivenClasses(tuple(table), tuple(_numbers(row, where) for row in rows), None, where)
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise UserError("the classes do not all name the same attributes", where, hint)
    columns = tuple(rows[0])
    return GivenClasses(tuple(table), tuple(_numbers([row[c] for c in columns], where) for row in rows), columns, where)


def _read_csv(path: Path) -> GivenClasses:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if len(lines) < 2:
        hint = "a head with the attributes' names, then a row per class"
        raise UserError("the class table has no head and rows", str(path), hint)
    columns = tuple(cell.strip() for cell in lines[0][1:])
    for number, row in enumerate(lines[1:], start=2):
        if len(row) != len(lines[0]):
            raise UserError(f"row {number} has {len(row)} cells, the head has {len(lines[0])}", str(path))
    rows = tuple(_numbers(row[1:], f"{path}, class {row[0].strip()}") for row in lines[1:])
    return GivenClasses(tuple(row[0].strip() for row in lines[1:]), rows, columns, str(path))


def _read_array(path: Path) -> GivenClasses:
    try:
        values = np.atleast_2d(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        message = f"the class table is no array of numbers: {error}"
        raise UserError(message, str(path), "np.save a U × S array") from error
    if values.ndim != 2 or values.dtype.kind not in "iufb":
        message = f"the array is {values.ndim}-dimensional of {values.dtype}, not U × S numbers"
        raise UserError(message, str(path), "np.save a U × S array")
    names = tuple(f"class {number}" for number in range(1, len(values) + 1))
    return GivenClasses(names, tuple(map(tuple, values.astype(float).tolist())), None, str(path))


def _numbers(cells: Sequence[Any], where: str) -> tuple[float, ...]:
    try:
        return tuple(float(cell) for cell in cells)
    except (TypeError, ValueError) as error:
        raise UserError(f"an attribute's strength is no number: {error}", where, "write numbers like 0.25") from error


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
