"""How far each variant is from the base on one benchmark: bars with their intervals."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from pipeline.analysis.comparison import Comparison, Entry
from pipeline.analysis.page import svg, words

WIDTH = 400.0
VALUE = 72.0
"""Width of the column of numbers on the right."""
ROW = 22.0
NAME_ROW = 16.0
"""Of a name above its bar."""
WIDEST_NAME = 130.0
"""Beside a bar; longer ones are above."""
LONGEST_NAME = 56
"""Characters."""


def bar_chart(comparison: Comparison, benchmark: str) -> Markup:
    """The variants in their order; every benchmark of a comparison gets the same scale."""
    entries = [one for one in comparison.entries if one.benchmark == benchmark and one.variant != comparison.base]
    widest = max((svg.width_of(one.variant) for one in entries), default=0)
    above = widest > WIDEST_NAME
    row = ROW + NAME_ROW * above
    axis = svg.linear(_points(comparison), 24 if above else widest + 8, WIDTH - VALUE, 0.04)
    bottom = 6 + row * len(entries)
    parts = [svg.line(axis.at(tick), 4, axis.at(tick), bottom, "grid") for tick in axis.ticks]
    parts.append(svg.line(axis.at(0), 4, axis.at(0), bottom, "zero"))
    for index, entry in enumerate(entries):
        top = 6 + row * index
        name = svg.shortened(entry.variant, LONGEST_NAME)
        y = top + row - ROW / 2 - 2 * above
        label = svg.text(0, top + NAME_ROW - 5, name, "name") if above else svg.text(axis.start - 8, y, name, "", "end")
        parts.append(svg.element("g", *_described(entry, label, axis, y)))
    parts += [_tick(axis, tick, bottom + 10) for tick in axis.ticks]
    parts.append(svg.text((axis.start + axis.end) / 2, bottom + 26, "difference to base, points", "muted", "middle"))
    title = f"{benchmark}: {words.symbol(comparison.metric)} of each variant less that of {comparison.base}"
    return svg.picture(title, WIDTH, bottom + 36, parts)


def _points(comparison: Comparison) -> list[float]:
    """What has to fit on the scale."""
    found = [one.difference for one in comparison.entries if one.difference is not None]
    ends = (end for one in found for end in (one.mean, one.low, one.high))
    return [0.0, *(100 * end for end in ends if end is not None)]


def _described(entry: Entry, label: Markup, axis: svg.Axis, y: float) -> Iterable[Markup]:
    """The parts of one row, with words for who points at it."""
    sign = words.VERDICTS.get(entry.verdict, "")
    difference = entry.difference
    if difference is None:
        yield svg.element("title", f"{entry.variant}: {entry.verdict}")
        yield label
        yield svg.text(WIDTH, y, f"{sign} {entry.verdict}", "muted", "end")
        return
    mean = words.points(difference.mean)
    yield svg.element("title", f"{entry.variant}: {mean} over {_seeds(difference.n)}, {entry.verdict}")
    yield label
    left, right = sorted((axis.at(0), axis.at(100 * difference.mean)))
    kind = f"bar {words.css_class(entry.verdict)}"
    yield svg.element("rect", x=left, y=y - 6, width=right - left, height=12, class_=kind)
    if difference.low is not None and difference.high is not None:
        low, high = axis.at(100 * difference.low), axis.at(100 * difference.high)
        yield svg.line(low, y, high, y, "interval")
        yield from (svg.line(x, y - 4, x, y + 4, "interval") for x in (low, high))
    yield svg.text(WIDTH, y, f"{sign} {mean}", anchor="end")


def _tick(axis: svg.Axis, tick: float, y: float) -> Markup:
    label = f"{tick:+.{axis.decimals}f}".replace("-", "−") if tick else "0"
    return svg.text(axis.at(tick), y, label, "muted", "middle")


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"
