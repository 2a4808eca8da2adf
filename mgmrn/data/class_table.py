"""Tables of classes described by attributes, for predictions among classes of the user's choice.

    .csv, .tsv   a row per class: its name, then a number per attribute; the head names the attributes, in any order; between
             them commas, semicolons (then with decimal commas, too) or tabs
    .json    {"class": {"attribute": number, …}, …}, or {"class": [number, …], …} in the model's order
    .npy     U × S numbers in the model's order (or S for a single class); the classes are numbered

U classes, S attributes. A row's length does not matter, its direction does: scores are cosines. Names are compared
without blanks at their ends and in Unicode's composed form (NFC).
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mgmrn.data.matrices import read_npy, without_direction
from mgmrn.errors import UserError, some
from mgmrn.reading import read_text, text_lines, to_number

_KIND = "class table"


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
        for what, names in (("class", self.names), ("attribute", self.columns or ())):
            if odd := [name for name in names if not is_name(name)]:
                message = f"the {what} name {odd[0]!a} is empty or does not print"
                raise UserError(message, self.where, "write a name in printable characters")
            if twice := _repeated(names):
                raise UserError(f"the {what} {twice} is given twice", self.where, "leave one of the two out")

    def attributes(self, known: Sequence[str]) -> Float[np.ndarray, "U S"]:
        """The classes' attribute vectors in the order of a model's attributes, `known`.

        Raises UserError for missing and unknown attributes, and for rows that are too short, too long, or without a
        direction.
        """
        known = [plain_name(name) for name in known]
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
        values = np.asarray(self.rows, dtype=np.float64)
        if len(wrong := without_direction(values)):
            message = f"the attributes of class {self.names[wrong[0]]} are all zero, not finite or out of range"
            raise UserError(message, self.where, "describe it by numbers like 0.25")
        if self.columns is not None:
            values = values[:, [self.columns.index(name) for name in known]]
        return values.astype(np.float32)


def read_class_table(path: Path) -> GivenClasses:
    """Reads a file of classes in the format of its ending. Raises UserError when it is missing or no class table."""
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return _read_csv(path)
        case ".json":
            return classes_from_json(read_text(path, _KIND, "check the path"), str(path))
        case ".npy":
            return _read_array(path)
        case _:
            hint = "a row per class, a column per attribute"
            raise UserError("a class table ends in .csv, .tsv, .json or .npy", str(path), hint)


def classes_from_json(text: str, where: str) -> GivenClasses:
    """Classes from the text of a JSON object. Raises UserError, which calls the text `where`, for anything else."""
    hint = 'write {"class": {"attribute": number, …}, …} or {"class": [number, …], …}'

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := _repeated([name for name, _ in pairs]):
            raise UserError(f"{twice} is given twice", where, "leave one of the two out")
        return dict(pairs)

    try:
        table = json.loads(text, object_pairs_hook=once, parse_int=float)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"the classes are no JSON: {error}", where, hint) from error
    if not isinstance(table, dict) or not table:
        raise UserError("the classes are no JSON object with an entry per class", where, hint)
    names, rows = tuple(map(plain_name, table)), list(table.values())
    if all(isinstance(row, list) for row in rows):
        return GivenClasses(names, tuple(_numbers(row, where) for row in rows), None, where)
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise UserError("the classes do not all name the same attributes", where, hint)
    columns = tuple(rows[0])
    numbers = tuple(_numbers([row[name] for name in columns], where) for row in rows)
    return GivenClasses(names, numbers, tuple(map(plain_name, columns)), where)


def plain_name(name: str) -> str:
    """A name as it is compared: without blanks at its ends, and composed (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def is_name(name: str) -> bool:
    """Whether a name can be read on a screen: it is not empty and holds printable characters alone."""
    return name.isprintable() and name != ""


def _read_csv(path: Path) -> GivenClasses:
    lines = list(text_lines(path, _KIND, "check the path"))
    separator = max(",;\t", key=next(filter(str.strip, lines), "").count)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise UserError(f"the class table cannot be read: {error}", where, "write a row per class") from error
    if len(rows) < 2 or len(rows[0][1]) < 2:
        hint = "a head with the attributes' names, then a row per class; commas, semicolons or tabs between"
        raise UserError("the class table has no head and rows", str(path), hint)
    head, *classes = (row for _, row in rows)
    for number, row in rows:
        if len(row) != len(head):
            hint = "quote cells that hold the separator, and write numbers like 0.25"
            raise UserError(f"line {number} has {len(row)} cells, the head has {len(head)}", f"{path}:{number}", hint)
    point = "," if separator == ";" else "."
    numbers = tuple(
        _numbers([cell.replace(point, ".") for cell in row[1:]], f"{path}, class {row[0].strip()}") for row in classes
    )
    names = tuple(plain_name(row[0]) for row in classes)
    return GivenClasses(names, numbers, tuple(map(plain_name, head[1:])), str(path))


def _read_array(path: Path) -> GivenClasses:
    values = np.atleast_2d(read_npy(path, _KIND))
    if values.ndim != 2 or values.dtype.kind not in "iufb":
        message = f"the array is {values.ndim}-dimensional of {values.dtype}, not U × S numbers"
        raise UserError(message, str(path), "np.save a U × S array")
    names = tuple(f"class {number}" for number in range(1, len(values) + 1))
    return GivenClasses(names, tuple(map(tuple, values.astype(float).tolist())), None, str(path))


def _numbers(cells: Sequence[Any], where: str) -> tuple[float, ...]:
    try:
        return tuple(to_number(cell) if isinstance(cell, str) else float(cell) for cell in cells)
    except (TypeError, ValueError) as error:
        raise UserError(f"an attribute's strength is no number: {error}", where, "write numbers like 0.25") from error


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
