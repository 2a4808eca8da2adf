"""Boxes of the parts of a picture, and the part of each attribute; the embedded benchmark alone has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgmrn.data.xlsa17 import SYNTHETIC_MARKER
from mgmrn.errors import UserError
from mgmrn.makers.drawing import PART_OF_TRAIT, TRAITS, Box

WHOLE_PICTURE = "habitat"
"""Part that covers the picture, which the pointing game leaves out."""


@dataclass(frozen=True)
class Parts:
    """The annotated parts of one picture."""

    boxes: Mapping[str, Box]
    """Boxes in pixels of the picture file."""
    attributes: tuple[str, ...]
    """Attributes that the picture shows."""

    def shown(self) -> dict[str, Box]:
        """Box of each shown attribute's part, without attributes of the whole picture."""
        parts = {name: part_of(name) for name in self.attributes}
        return {name: self.boxes[part] for name, part in parts.items() if part not in (None, WHOLE_PICTURE)}


def part_of(attribute: str) -> str | None:
    """Part of an attribute of the embedded benchmark, whose words may be joined by underscores; None for others."""
    plain = attribute.replace("_", " ")
    return next((PART_OF_TRAIT[trait] for trait, names in TRAITS.items() if plain in names), None)


def read_parts(root: Path, name: str) -> dict[str, Parts] | None:
    """The parts of every picture, by its file relative to `<root>/<name>`; None for a data set without boxes.

    Raises UserError when the embedded benchmark's file of boxes is damaged.
    """
    path = root / name / "parts.json"
    if not path.is_file() or not (root / SYNTHETIC_MARKER).is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            f"images/{file}": Parts(
                {part: _box(box) for part, box in entry["boxes"].items()}, tuple(entry["attributes"])
            )
            for file, entry in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("the boxes of the parts cannot be read", str(path), "make the benchmark again") from error


def _box(edges: Sequence[float | int]) -> Box:
    left, top, right, bottom = map(float, edges)
    return left, top, right, bottom
