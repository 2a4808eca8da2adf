"""Cost of each variant against its score on one benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.analysis.comparison import Comparison, score_of
from pipeline.analysis.page import svg, words

WIDTH, HEIGHT = 400.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 40.0
MOST_NAMES = 8
LONGEST_NAME = 22
"""Characters; more or longer names are replaced by numbers."""
WIDE = 30
"""From this ratio of costs on, their axis is logarithmic."""


@dataclass(frozen=True)
class Cost:
    """One point of the chart."""

    number: int
    """Of the variant, from 1."""
    variant: str
    verdict: str
    seconds: float
    """Mean over seeds."""
    score: float


@dataclass(frozen=True)
class Costs:
    """All variants of a benchmark whose cost is known."""

    benchmark: str
    unit: str
    """`GPU time` or `wall-clock time`, per seed."""
    points: tuple[Cost, ...]


def costs(comparison: Comparison, benchmark: str) -> Costs:
    """What each variant's scores took: GPU time where every run has some, else wall-clock time."""
    entries = {one.variant: one for one in comparison.entries if one.benchmark == benchmark and one.summary}
    cards = {
        variant: [card for card in one.cards if score_of(card, comparison.metric) is not None]
        for variant, one in entries.items()
    }
    on_gpu = all(card.gpu_seconds for found in cards.values() for card in found)
    points = []
    for number, variant in enumerate(comparison.variants, 1):
        times = [card.gpu_seconds if on_gpu else card.seconds for card in cards.get(variant, [])]
        known = [time for time in times if time]
        summary = entries[variant].summary if variant in entries else None
        if known and summary is not None:
            points.append(Cost(number, variant, entries[variant].verdict, statistics.fmean(known), summary.mean))
    return Costs(benchmark, "GPU time" if on_gpu else "wall-clock time", tuple(points))


def cost_chart(comparison: Comparison, found: Costs) -> Markup:
    """A point per variant, with its name or, where there are many, its number."""
    unit, size = _unit(max(one.seconds for one in found.points))
    times = [one.seconds / size for one in found.points]
    start, end = LEFT, WIDTH - RIGHT
    wide = max(times) > WIDE * min(times)
    across = svg.logarithmic(times, start, end) if wide else svg.linear([0, *times], start, end - 10)
    up = svg.linear([100 * one.score for one in found.points], HEIGHT - BOTTOM, TOP, 0.1)
    parts: list[Markup] = []
    for tick in up.ticks:
        parts.append(svg.line(start, up.at(tick), end, up.at(tick), "grid"))
        parts.append(svg.text(start - 6, up.at(tick), f"{tick:.{up.decimals}f}", "muted", "end"))
    for tick in across.ticks:
        parts.append(svg.line(across.at(tick), up.start, across.at(tick), up.end, "grid"))
        parts.append(svg.text(across.at(tick), up.start + 12, f"{tick:g}", "muted", "middle"))
    parts.append(svg.text((start + end) / 2, HEIGHT - 10, f"{unit} of {found.unit} per seed", "muted", "middle"))
    spots = [(across.at(time), up.at(100 * one.score)) for time, one in zip(times, found.points, strict=True)]
    parts += [_mark(one, *spot) for one, spot in zip(found.points, spots, strict=True)]
    numbered = is_numbered(comparison)
    labels = [str(one.number) if numbered else one.variant for one in found.points]
    parts += _labels(labels, spots)
    title = f"{found.benchmark}: {words.symbol(comparison.metric)} against {found.unit} per seed"
    return svg.picture(title, WIDTH, HEIGHT, parts)


def _unit(seconds: float) -> tuple[str, float]:
    return next(
        ((name, size) for name, size in (("hours", 3600.0), ("minutes", 60.0)) if seconds >= 2 * size), ("seconds", 1.0)
    )


def is_numbered(comparison: Comparison) -> bool:
    """Whether the chart's points carry numbers."""
    return len(comparison.variants) > MOST_NAMES or max(map(len, comparison.variants)) > LONGEST_NAME


def _mark(one: Cost, x: float, y: float) -> Markup:
    full = f"{one.variant}: {words.percent(one.score)} % in {words.time(one.seconds)}, {one.verdict}"
    kind = words.css_class(one.verdict)
    shapes = {
        "better": [(x, y - 6), (x + 5.5, y + 4.5), (x - 5.5, y + 4.5)],
        "worse": [(x, y + 6), (x + 5.5, y - 4.5), (x - 5.5, y - 4.5)],
        "base": [(x - 4.5, y - 4.5), (x + 4.5, y - 4.5), (x + 4.5, y + 4.5), (x - 4.5, y + 4.5)],
    }
    title = svg.element("title", full)
    if kind in shapes:
        return svg.element("path", title, d=f"{svg.path(shapes[kind])}Z", class_=f"mark {kind}")
    return svg.element("circle", title, cx=x, cy=y, r=4.5, class_=f"mark {kind}")


def _labels(labels: Sequence[str], spots: Sequence[tuple[float, float]]) -> list[Markup]:
    """Each label beside its point where it covers least of what is there already."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    parts = []
    for label, (x, y) in zip(labels, spots, strict=True):
        width = svg.width_of(label)
        places = [(x + 8, y), (x - 8 - width, y), (x - width / 2, y - 14), (x - width / 2, y + 14)]
        boxes = [(left, middle - 7, left + width, middle + 7) for left, middle in places]
        box = min(boxes, key=lambda one: sum(_overlap(one, other) for other in taken) + _outside(one))
        taken.append(box)
        parts.append(svg.text(box[0], box[1] + 7, label, "name"))
    return parts


Box = tuple[float, float, float, float]


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(one: Box) -> float:
    """What would be cut off counts most."""
    return 1e6 * (one[0] < LEFT or one[2] > WIDTH or one[1] < 0 or one[3] > HEIGHT - BOTTOM)
