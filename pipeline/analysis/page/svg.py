"""SVG elements with escaped text, and axes with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

CHARACTER = 6.8
"""Estimated width of a character of the charts' text, in pixels."""
MOST_STEPS = 5
"""Largest number of steps between ticks."""


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; `class_` is written `class`, and `stroke_width` `stroke-width`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{Markup().join(children)}</{name}>")


def picture(title: str, width: float, height: float, children: Iterable[str]) -> Markup:
    """An `svg` element; the title is its accessible name."""
    box = f"0 0 {_text(width)} {_text(height)}"
    return element("svg", element("title", title), *children, role="img", viewBox=box)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """Text whose vertical middle is at y."""
    # Some programs that print ignore `dominant-baseline`, so the offset is in y.
    return element("text", words, x=x, y=y + 4, class_=class_, text_anchor=anchor)


def path(points: Iterable[tuple[float, float]]) -> str:
    """Attribute `d` of a line through points."""
    return "M" + "L".join(f"{_text(x)} {_text(y)}" for x, y in points)


@dataclass(frozen=True)
class Axis:
    """Scale from values to positions in pixels."""

    low: float
    high: float
    start: float
    """Position of the low value."""
    end: float
    ticks: tuple[float, ...]
    decimals: int
    """Decimals that tell the ticks apart."""

    def label(self, tick: float) -> str:
        """A tick's value as text."""
        return f"{tick:.{self.decimals}f}"

    def at(self, value: float) -> float:
        """Position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float, margin: float = 0.0) -> Axis:
    """Linear axis over values, with at most six round ticks; the margin is a share of their span, added on both sides."""
    from matplotlib.ticker import MaxNLocator

    found = list(values)
    low, high = min(found), max(found)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    around = [float(tick) for tick in MaxNLocator(MOST_STEPS, steps=[1, 2, 5, 10]).tick_values(low, high)]
    slack = 1e-9 * (high - low)
    decimals = max(0, -math.floor(math.log10(around[1] - around[0]) + 1e-9))
    ticks = tuple(round(tick, decimals) for tick in around if low - slack <= tick <= high + slack)
    room = margin * (high - low)
    return Axis(low - room, high + room, start, end, ticks, decimals)


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


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
