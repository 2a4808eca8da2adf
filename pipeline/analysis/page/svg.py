"""Drawing by hand: escaped SVG elements, and axes with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import east_asian_width

from markupsafe import Markup, escape

CHARACTER = 6.8
"""Estimated width of a letter of the charts' 12-pixel text."""
MOST_STEPS = 5
"""Between ticks."""


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; `class_` is written `class`, and `stroke_width` `stroke-width`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{Markup().join(children)}</{name}>")


def picture(title: str, width: float, height: float, children: Iterable[str]) -> Markup:
    """A whole drawing, which a screen reader calls by its title."""
    box = f"0 0 {_text(width)} {_text(height)}"
    return element("svg", element("title", title), *children, role="img", viewBox=box)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """Words, whose middle is at this height."""
    # Not dominant-baseline, which not every program that prints knows.
    return element("text", words, x=x, y=y + 4, class_=class_, text_anchor=anchor)


def path(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a line through points."""
    return "M" + "L".join(f"{_text(x)} {_text(y)}" for x, y in points)


def width_of(words: str) -> float:
    """About how wide words will be."""
    return CHARACTER * sum(2 if east_asian_width(letter) in "WF" else 1 for letter in words)


def shortened(words: str, limit: int) -> str:
    """Words without their middle where they are too long: names mostly differ at an end."""
    if len(words) <= limit:
        return words
    tail = (limit - 1) // 2
    return f"{words[: limit - 1 - tail]}…{words[-tail:]}"


@dataclass(frozen=True)
class Axis:
    """Values along a stretch of the drawing."""

    low: float
    high: float
    start: float
    """Where the low value is drawn."""
    end: float
    ticks: tuple[float, ...]
    decimals: int = 0
    """That tell the ticks apart."""
    logarithmic: bool = False

    def label(self, tick: float) -> str:
        """A tick's value as text, with the decimals that tell the ticks apart."""
        return f"{tick:g}" if self.logarithmic else f"{tick:.{self.decimals}f}"

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        scale = math.log if self.logarithmic else float
        low, high = scale(self.low), scale(self.high)
        share = (scale(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float, margin: float = 0.0) -> Axis:
    """An axis over values, with at most six round ticks; the margin is a share of their span, left on both sides."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / MOST_STEPS)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(round(index * step, decimals) for index in range(first, last + 1))
    room = margin * (high - low)
    return Axis(low - room, high + room, start, end, ticks, decimals)


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis over positive values, with a tick at each power of ten."""
    found = list(values)
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    ticks = tuple(10.0**power for power in range(low, max(high, low + 1) + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks, logarithmic=True)


def grid(across: Axis, up: Axis) -> list[Markup]:
    """Grid lines of a chart with its labels below and on the left."""
    parts = []
    for tick in up.ticks:
        parts.append(line(across.start, up.at(tick), across.end, up.at(tick), "grid"))
        parts.append(text(across.start - 6, up.at(tick), up.label(tick), "muted", "end"))
    for tick in across.ticks:
        parts.append(line(across.at(tick), up.start, across.at(tick), up.end, "grid"))
        parts.append(text(across.at(tick), up.start + 12, across.label(tick), "muted", "middle"))
    return parts


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 × 10ⁿ that is not below."""
    unit: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= step * (1 - 1e-9))


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
