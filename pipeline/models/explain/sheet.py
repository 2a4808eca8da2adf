"""A contact sheet: the pictures of one class, a row each, with the maps of every level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.models.explain.explained import Explained
from pipeline.models.explain.tiles import SIDE, attention_tile, plain_tile, region_tile

ATTRIBUTES = 3
"""Whose attention is shown, of those that decided."""
MARGIN, LINE = 6, 16
ROW = 3 * LINE + SIDE + MARGIN
"""A line for the verdict, two for captions, and the tiles."""
CHARACTERS = 20
"""That fit into a line above a tile."""
PAPER, INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(title: str, pictures: Sequence[Explained]) -> Any:
    """The sheet as a picture.

    Args:
        title: above it.
        pictures: with the same levels.
    """
    rows = [_row(one) for one in pictures]
    columns = max(len(row) for row in rows)
    height = 2 * LINE + len(rows) * ROW
    sheet = Image.new("RGB", (MARGIN + columns * (SIDE + MARGIN), height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    draw.text((MARGIN, MARGIN), title, INK, font=ImageFont.load_default(size=14))
    for number, (one, row) in enumerate(zip(pictures, rows, strict=True)):
        top = 2 * LINE + number * ROW
        draw.text((MARGIN, top), verdict(one), INK, font=font)
        for column, (captions, tile) in enumerate(row):
            left = MARGIN + column * (SIDE + MARGIN)
            for line, caption in enumerate(captions, start=1):
                draw.text((left, top + line * LINE), _shortened(caption), INK, font=font)
            sheet.paste(tile, (left, top + 3 * LINE))
    return sheet


def verdict(one: Explained) -> str:
    """Like `taken for gull (unseen), rather than owl (seen) by 1.20`."""
    best, other = one.best, one.runner_up
    right = "" if one.subject.truth is None else ("right: " if one.subject.truth == best.name else "wrong: ")
    return (
        f"{right}{best.name} ({_group(best.seen)}) rather than {other.name} ({_group(other.seen)}) by {one.margin:.2f}"
    )


def _group(seen: bool) -> str:
    return "seen" if seen else "unseen"


def attribute_captions(level: str, attribute: str) -> tuple[str, str]:
    """Two lines for `has_throat_color::black`: what it is of, and its value."""
    words = attribute.removeprefix("has_").replace("_", " ")
    subject, _, value = words.rpartition("::")
    return (f"{level} {subject}", value) if subject else (level, value)


def _shortened(caption: str) -> str:
    return caption if len(caption) <= CHARACTERS else f"{caption[: CHARACTERS - 1]}…"


def _row(one: Explained) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = [(("picture",), plain_tile(one.pixels))]
    for maps in one.levels:
        if maps.regions is not None:
            found.append(((maps.level, "regions"), region_tile(one.pixels, maps.regions)))
        for reason, attention in zip(one.reasons[:ATTRIBUTES], maps.attention, strict=False):
            captions = attribute_captions(maps.level, reason.attribute)
            found.append((captions, attention_tile(one.pixels, attention)))
    return found
