"""A contact sheet: the pictures of one class, a row each, with the maps of every level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.explain.explained import Explained
from pipeline.explain.tiles import SIDE, attention_tile, plain_tile, region_tile

ATTRIBUTES = 3
"""Whose attention is shown, of those that decided."""
MARGIN, LINE = 6, 16
CHARACTERS = 20
"""That fit above a tile."""
PAPER, INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(title: str, pictures: Sequence[Explained]) -> Any:
    """The sheet as a picture.

    Args:
        title: above it.
        pictures: with the same levels.
    """
    rows = [_row(one) for one in pictures]
    columns = max(len(row) for row in rows)
    height = 2 * LINE + len(rows) * (SIDE + 2 * LINE + MARGIN)
    sheet = Image.new("RGB", (MARGIN + columns * (SIDE + MARGIN), height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    draw.text((MARGIN, MARGIN), title, INK, font=ImageFont.load_default(size=14))
    for number, (one, row) in enumerate(zip(pictures, rows, strict=True)):
        top = 2 * LINE + number * (SIDE + 2 * LINE + MARGIN)
        draw.text((MARGIN, top), verdict(one), INK, font=font)
        for column, (caption, tile) in enumerate(row):
            left = MARGIN + column * (SIDE + MARGIN)
            draw.text((left, top + LINE), caption[:CHARACTERS], INK, font=font)
            sheet.paste(tile, (left, top + 2 * LINE))
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


def _row(one: Explained) -> list[tuple[str, Any]]:
    found = [("picture", plain_tile(one.pixels))]
    for maps in one.levels:
        if maps.regions is not None:
            found.append((f"{maps.level} regions", region_tile(one.pixels, maps.regions)))
        for reason, attention in zip(one.reasons[:ATTRIBUTES], maps.attention, strict=False):
            name = reason.attribute.replace("_", " ")
            found.append((f"{maps.level} {name}", attention_tile(one.pixels, attention)))
    return found
