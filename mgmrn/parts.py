"""Annotated parts of a benchmark's pictures, and the attributes that name them.

    <NAME>/parts.json         drawings: boxes of the parts; stand-ins: edges of the quilt's cells
    <NAME>/CUB_200_2011/      photographs: files of CUB-200-2011 (Wah et al., CNS-TR-2011-001)
        images.txt              number and file of each picture
        bounding_boxes.txt      number, x, y, width, height of the bird; without it, birds fill their pictures
        parts/parts.txt         number and name of each part
        parts/part_locs.txt     picture, part, x, y, whether it is visible

Lengths are pixels of the picture's file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mgmrn.data.splits import Images
from mgmrn.data.xlsa17 import STANDIN_MARKER
from mgmrn.errors import UserError
from mgmrn.localisation import Box
from mgmrn.makers.drawing import PART_OF_TRAIT, TRAITS
from mgmrn.reading import text_lines

SHARE_OF_BIRD = 1 / 4
"""Sides of the box around an annotated point, in those of the bird's box (APN: see `mgmrn.localisation.hits`)."""
CUB_WORDS = {"bill": "beak", "upperparts": "back", "underparts": "belly", "upper_tail": "tail", "under_tail": "tail"}
"""Parts for which CUB's attributes have another word; back and belly are those of APN's groups."""
CUB_POINTS = {
    **{part: (f"left {part}", f"right {part}") for part in ("eye", "leg", "wing")},
    "head": ("beak", "crown", "forehead", "nape", "left eye", "right eye"),
}
"""Annotated points of parts that have several; the head's are those of APN."""


class Part(NamedTuple):
    """A part of one picture."""

    point: tuple[float, float]
    """Centre: x and y."""
    size: tuple[float, float] | None = None
    """Width and height of its box; None: `SHARE_OF_BIRD` of the picture's."""

    def box(self, width: int, height: int) -> Box:
        """The part's box, moved into its picture of `width` by `height` pixels."""
        w, h = self.size or (width * SHARE_OF_BIRD, height * SHARE_OF_BIRD)
        left = max(min(self.point[0] - w / 2, width - w), 0.0)
        top = max(min(self.point[1] - h / 2, height - h), 0.0)
        return left, top, left + w, top + h


class AttributeGroup(NamedTuple):
    """Attributes of a part of which a picture shows one, like the colours of the wing."""

    name: str
    part: str
    annotated: tuple[str, ...]
    """Names of the annotated parts, any of which counts."""


@dataclass(frozen=True)
class Parts:
    """The annotated parts of some pictures."""

    groups: Mapping[AttributeGroup, Sequence[int]]
    """Rows of the attributes of each group; attributes without an annotated part are in none."""
    pictures: Mapping[str, Mapping[str, Part]]
    """Visible parts by name, by file as `Images` has it."""


def read_parts(images: Images, attributes: Sequence[str]) -> Parts | None:
    """The parts of pictures of a benchmark with these attributes; None without annotations, or attributes that name them.

    Raises UserError for a file that cannot be read.
    """
    made, wanted = images.root / "parts.json", set(images.files)
    prefix = images.files[0].partition("images/")[0] + "images/"
    folder = (images.root / prefix).parent
    groups: Sequence[AttributeGroup | None]
    if made.is_file():
        is_standin = (images.root / STANDIN_MARKER).is_file()
        pictures = _made_parts(made, "" if is_standin else prefix, wanted)
        # Each channel of a stand-in's cell is an attribute.
        cells = [AttributeGroup("", "cell", (str(row // 3),)) for row in range(len(attributes))]
        groups = cells if is_standin else [_of_drawing(name) for name in attributes]
    elif (folder / "parts" / "part_locs.txt").is_file():
        pictures = _photographed_parts(folder, prefix, wanted)
        names = {name for parts in pictures.values() for name in parts}
        groups = [_of_bird(names, name) for name in attributes]
    else:
        return None
    rows: dict[AttributeGroup, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None:
            rows.setdefault(group, []).append(row)
    return Parts(rows, pictures) if rows else None


def _of_drawing(attribute: str) -> AttributeGroup | None:
    plain = attribute.replace("_", " ")
    trait = next((trait for trait, names in TRAITS.items() if plain in names), "habitat")
    # The habitat is the whole picture.
    return None if trait == "habitat" else AttributeGroup(trait, PART_OF_TRAIT[trait], (PART_OF_TRAIT[trait],))


def _of_bird(names: set[str], attribute: str) -> AttributeGroup | None:
    if (found := re.match(r"has_(\w+)_(?:color|pattern|shape|length)::", attribute)) is None:
        return None
    part = CUB_WORDS.get(found[1], found[1])
    annotated = CUB_POINTS.get(part, (part,))
    return AttributeGroup(found[0], part, annotated) if names.intersection(annotated) else None


def _photographed_parts(folder: Path, prefix: str, wanted: Collection[str]) -> dict[str, dict[str, Part]]:
    files = {number: prefix + file for number, file in _table(folder / "images.txt", int, str)}
    names = dict(_table(folder / "parts" / "parts.txt", int, str))
    boxes = folder / "bounding_boxes.txt"
    birds = _table(boxes, int, float, float, float, float) if boxes.is_file() else []
    sizes = {number: (SHARE_OF_BIRD * width, SHARE_OF_BIRD * height) for number, _, _, width, height in birds}
    pictures: dict[str, dict[str, Part]] = {}
    for number, part, x, y, visible in _table(folder / "parts" / "part_locs.txt", int, int, float, float, int):
        if visible and part in names and (file := files.get(number, "")) in wanted:
            pictures.setdefault(file, {})[names[part]] = Part((x, y), sizes.get(number))
    return pictures


def _table(path: Path, *kinds: Callable[[str], Any]) -> list[tuple[Any, ...]]:
    """Rows of a text file with a column of each kind, the last of which may hold blanks."""
    rows, remedy = [], "get it again from CUB-200-2011"
    for number, line in enumerate(text_lines(path, "table", remedy), start=1):
        words = line.strip().split(maxsplit=len(kinds) - 1)
        try:
            rows.append(tuple(kind(word) for kind, word in zip(kinds, words, strict=True)))
        except ValueError as error:
            message = f"line {number} does not hold the {len(kinds)} columns of CUB's {path.name}"
            raise UserError(message, f"{path}:{number}", remedy) from error
    return rows


def _made_parts(path: Path, prefix: str, wanted: Collection[str]) -> dict[str, dict[str, Part]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).items()
        boxes = {prefix + file: _boxes(entry) for file, entry in found if prefix + file in wanted}
        return {file: {name: _boxed(*map(float, box)) for name, box in one.items()} for file, one in boxes.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("the annotated parts cannot be read", str(path), "make the benchmark again") from error


def _boxes(entry: Any) -> dict[str, Any]:
    """Boxes by name: those of a drawing, or of a stand-in's cells, row by row, from their vertical and horizontal edges."""
    if isinstance(entry, dict):
        return dict(entry["boxes"])
    xs, ys = entry
    cells = [(left, top, right, bottom) for top, bottom in pairwise(ys) for left, right in pairwise(xs)]
    return {str(number): box for number, box in enumerate(cells)}


def _boxed(left: float, top: float, right: float, bottom: float) -> Part:
    return Part(((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top))
