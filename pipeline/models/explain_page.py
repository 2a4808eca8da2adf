"""The page of explanations, one HTML file that loads nothing, and a contact sheet per class.

P: pixels of a side of the network's input. K: regions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.analysis.page.page import STYLE, page_template
from pipeline.models.reasons import ALL_LEVELS, ALL_PARTS, DECISIVE, Explained, Pointing

HERE = Path(__file__).parent
SIDE = 128
"""Side of a tile, in pixels."""
STRENGTH = 0.85
"""Share of the picture's colour that the strongest attention, or a certain region, replaces."""
FAINTEST = 0.3
"""Share that a region replaces where all regions are equally likely."""
GREY = np.array([0.299, 0.587, 0.114])
ATTRIBUTES = 3
"""Number of deciding attributes whose attention is shown on a sheet."""
MARGIN, LINE = 6, 16
ROW = 3 * LINE + SIDE + MARGIN
"""Height of a sheet's row: a line for the verdict, two for captions, and the tiles."""
CHARACTERS = 20
"""Characters that fit into a line above a tile."""
PAPER, INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class ClassOfPictures:
    """Pictures of one class."""

    name: str
    pictures: tuple[Explained, ...]


@dataclass(frozen=True)
class Content:
    """Everything that the page shows."""

    model: str
    benchmark: str
    gamma: float
    classes: tuple[ClassOfPictures, ...]
    pointing: Mapping[str, Mapping[str, Pointing]] | None
    """Level → part → result; None without boxes of parts."""
    made_at: str
    commit: str

    @property
    def pictures(self) -> list[Explained]:
        """Pictures of all classes."""
        return [one for of_class in self.classes for one in of_class.pictures]

    @property
    def overall(self) -> Pointing | None:
        """Pointing of all levels and parts together."""
        return self.pointing[ALL_LEVELS][ALL_PARTS] if self.pointing else None


def render(content: Content) -> str:
    """The page as text."""
    filters = (signed, why, plain_tile, region_tile, attention_tile, data_uri)
    style = "\n".join(path.read_text(encoding="utf-8") for path in (STYLE, HERE / "explain.css"))
    return page_template(HERE / "explain.html.j2", filters).render(
        content=content,
        known=sum(one.subject.truth is not None for one in content.pictures),
        right=sum(one.subject.truth == one.best.name for one in content.pictures),
        decisive=DECISIVE,
        style=Markup(style),
    )


def signed(value: float) -> str:
    """A number with its sign; the minus is as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def why(one: Explained) -> str:
    """The answer and its reasons in a few sentences."""
    speaking_for = [reason for reason in one.reasons if reason.total > 0]
    against = [reason for reason in one.reasons if reason.total < 0]
    text = f"{one.best.name} rather than {one.runner_up.name} by {one.margin:.2f}."
    for words, reasons in ((f"For {one.best.name}", speaking_for), (f"for {one.runner_up.name}", against)):
        if reasons:
            listed = ", ".join(f"{reason.attribute} {signed(reason.total)}" for reason in reasons[:3])
            text += f" {words[0].upper()}{words[1:]} speak {listed}."
    if one.handicap:
        better_off = one.best if one.handicap > 0 else one.runner_up
        text += f" Of the two, {better_off.name} is unseen, which γ is worth {abs(one.handicap):.2f} to it."
    if one.subject.truth is not None and one.subject.truth != one.best.name:
        text += f" It is {one.subject.truth}."
    return text


def contact_sheet(title: str, pictures: Sequence[Explained]) -> Any:
    """Pictures of one class, a row each, with the maps of every level.

    Args:
        title: heading of the sheet.
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
    """Two lines for an attribute like `has_throat_color::black`: level and subject, and value."""
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


def plain_tile(pixels: UInt8[np.ndarray, "P P 3"]) -> Any:
    """The picture itself."""
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def attention_tile(pixels: UInt8[np.ndarray, "P P 3"], attention: Float[Tensor, "P P"]) -> Any:
    """The picture in grey with attention as heat, relative to the largest attention in the picture."""
    from matplotlib import colormaps

    share = (attention / attention.max().clamp_min(1e-12)).numpy()
    heat = colormaps["inferno"](share)[..., :3] * 255
    cover = STRENGTH * share[..., None]
    return _tile(_grey(pixels) * (1 - cover) + heat * cover)


def region_tile(pixels: UInt8[np.ndarray, "P P 3"], regions: Float[Tensor, "K P P"]) -> Any:
    """The picture in grey, each pixel in the colour of its largest region, stronger for a more certain assignment."""
    from matplotlib import colormaps

    colours = np.array([colormaps["tab10"](k % 10)[:3] for k in range(len(regions))]) * 255
    largest, owner = (found.numpy() for found in regions.max(dim=0))
    sureness = np.clip((largest - 1 / len(regions)) / (1 - 1 / len(regions)), 0, 1)
    cover = (FAINTEST + (STRENGTH - FAINTEST) * sureness)[..., None]
    return _tile(_grey(pixels) * (1 - cover) + colours[owner] * cover)


def data_uri(tile: Any) -> str:
    """A tile as a JPEG in a data URI."""
    encoded = io.BytesIO()
    tile.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _grey(pixels: UInt8[np.ndarray, "P P 3"]) -> Float[np.ndarray, "P P 1"]:
    return np.asarray(pixels @ GREY)[..., None]


def _tile(colours: Float[np.ndarray, "P P 3"]) -> Any:
    return plain_tile(np.clip(colours, 0, 255).astype(np.uint8))
