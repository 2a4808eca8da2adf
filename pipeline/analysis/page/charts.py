"""Charts of the report page as SVG: differences to the base, seen–unseen curves, cost against score; and their elements, whose text is
escaped, and axes with round ticks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from pipeline.analysis.comparison import VERDICTS, Comparison
from pipeline.analysis.runs import FIGURES, rows_of
from pipeline.analysis.tables import percent
from pipeline.console import duration

if TYPE_CHECKING:
    import pandas as pd

# Lengths are in pixels.
WIDTH = 400.0
"""Width of bar and cost charts."""
VALUE = 72.0
"""Width of the column of numbers on the right of the bars."""
ROW, NAME_ROW = 22.0, 16.0
"""Height of a bar's row, and of a name above its bar."""
WIDEST_NAME = 130.0
"""Widest name beside a bar; wider ones stand above their bars."""
PANEL, PANEL_LEFT, PANEL_BOTTOM, PANEL_MARGIN = 210.0, 36.0, 36.0, 8.0
"""Side and margins of a panel of curves."""
TOLERANCE = 0.4
"""Largest distance between a curve and its drawing."""
CHARACTER = 6.8
"""Estimated width of a character of the charts' text, in pixels."""
MOST_STEPS = 5
"""Largest number of steps between ticks."""
COST_HEIGHT = 280.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 40.0
"""Margins of the cost chart."""

SIGNS = dict(zip(VERDICTS, "▲▼○?×■", strict=True))
"""Verdict → sign, which makes the verdicts readable without colour."""

Point = tuple[float, float]


def points(difference: float) -> str:
    """A difference of fractions in percentage points with its sign; the minus is as wide as the plus."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def time(seconds: float) -> str:
    """Seconds like `0.25 s`, `45 s` or `2 h 10 min`."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def css_class(verdict: str) -> str:
    """CSS class of a verdict."""
    return verdict.replace(" ", "-")


def bar_chart(comparison: Comparison, benchmark: str) -> Markup:
    """Differences to the base with their intervals; the scale is the same for every benchmark of the comparison."""
    entries = [one for one in rows_of(comparison.on(benchmark)) if one.variant != comparison.base]
    widest = CHARACTER * max((len(one.variant) for one in entries), default=0)
    above = widest > WIDEST_NAME
    row = ROW + NAME_ROW * above
    ends = (100 * comparison.entries[["difference", "low", "high"]]).stack().dropna()
    axis = linear([0.0, *ends], 24 if above else widest + 8, WIDTH - VALUE, 0.04)
    bottom = 6 + row * len(entries)
    parts = [svg_line(axis.at(tick), 4, axis.at(tick), bottom, "grid") for tick in axis.ticks]
    parts.append(svg_line(axis.at(0), 4, axis.at(0), bottom, "zero"))
    for index, entry in enumerate(entries):
        top = 6 + row * index
        name = entry.variant
        y = top + row - ROW / 2 - 2 * above
        label = svg_text(0, top + NAME_ROW - 5, name, "name") if above else svg_text(axis.start - 8, y, name, "", "end")
        parts.append(element("g", *_bar(entry, label, axis, y)))
    for tick in axis.ticks:
        text = f"{tick:+.{axis.decimals}f}".replace("-", "−") if tick else "0"
        parts.append(svg_text(axis.at(tick), bottom + 10, text, "muted", "middle"))
    parts.append(svg_text((axis.start + axis.end) / 2, bottom + 26, "difference to base, points", "muted", "middle"))
    title = f"{benchmark}: {FIGURES[comparison.metric]} of each variant less that of {comparison.base}"
    return picture(title, WIDTH, bottom + 36, parts)


def _bar(entry: Any, label: Markup, axis: Axis, y: float) -> Iterator[Markup]:
    """Elements of one row, the first of which is its tooltip."""
    sign = SIGNS[entry.verdict]
    if not entry.pairs:
        yield element("title", f"{entry.variant}: {entry.verdict}")
        yield label
        yield svg_text(WIDTH, y, f"{sign} {entry.verdict}", "muted", "end")
        return
    mean, seeds = points(entry.difference), f"{entry.pairs} seed{'s' * (entry.pairs > 1)}"
    yield element("title", f"{entry.variant}: {mean} over {seeds}, {entry.verdict}")
    yield label
    left, right = sorted((axis.at(0), axis.at(100 * entry.difference)))
    yield element("rect", x=left, y=y - 6, width=right - left, height=12, class_=f"bar {css_class(entry.verdict)}")
    if entry.pairs > 1:
        low, high = axis.at(100 * entry.low), axis.at(100 * entry.high)
        yield svg_line(low, y, high, y, "interval")
        yield from (svg_line(x, y - 4, x, y + 4, "interval") for x in (low, high))
    yield svg_text(WIDTH, y, f"{sign} {mean}", anchor="end")


def curve_panels(comparison: Comparison, curves: pd.DataFrame, benchmark: str) -> list[tuple[str, Markup]]:
    """A panel per variant that has a curve on a benchmark, all on one scale: the curves of its seeds before those of the base,
    and marks at the γ of the runs. `curves` has a row per point: `benchmark`, `variant`, `run_id`, `seen`, `unseen`.
    """
    here = curves[curves["benchmark"] == benchmark]
    if here.empty:
        return []
    top = 100 * here[["seen", "unseen"]].to_numpy().max()
    across = linear([0, top], PANEL_LEFT, PANEL - PANEL_MARGIN)
    up = linear([0, top], PANEL - PANEL_BOTTOM, PANEL_MARGIN)
    chosen = comparison.cells.dropna(subset=["gzsl_s", "gzsl_u"]).drop_duplicates("run_id").set_index("run_id")

    def drawn(variant: str, kind: str) -> tuple[list[Markup], list[Markup]]:
        lines, marks = [], []
        for run_id, curve in here[here["variant"] == variant].groupby("run_id", sort=False):
            line = [(across.at(100 * one.unseen), up.at(100 * one.seen)) for one in rows_of(curve)]
            lines.append(element("path", d=svg_path(simplified(line)), class_=f"curve {kind}"))
            if run_id in chosen.index:
                x, y = across.at(100 * chosen["gzsl_u"][run_id]), up.at(100 * chosen["gzsl_s"][run_id])
                if kind == "base":
                    marks.append(element("rect", x=x - 3, y=y - 3, width=6, height=6, class_="chosen base"))
                else:
                    marks.append(element("circle", cx=x, cy=y, r=3.5, class_="chosen own"))
        return lines, marks

    grid = svg_grid(across, up)
    grid.append(svg_text((across.start + across.end) / 2, PANEL - 8, "U, unseen, %", "muted", "middle"))
    grid.append(svg_text(6, (up.start + up.end) / 2, "S", "muted", "middle"))
    base_lines, base_marks = drawn(comparison.base, "base")
    panels = []
    for variant in comparison.variants:
        lines, marks = drawn(variant, "own")
        if lines:
            behind, squares = ([], []) if variant == comparison.base else (base_lines, base_marks)
            title = f"Seen–unseen curves on {benchmark}: {variant}"
            panels.append((variant, picture(title, PANEL, PANEL, [*grid, *behind, *lines, *squares, *marks])))
    return panels


def simplified(line: Sequence[Point]) -> list[Point]:
    """Points of a line that its drawing needs: the others lie within `TOLERANCE` of the line between them."""
    import numpy as np
    from matplotlib.path import Path

    path = Path(line)
    path.simplify_threshold = TOLERANCE
    drawn = path.cleaned(simplify=True)
    points = np.asarray(drawn.vertices)[np.asarray(drawn.codes) != Path.STOP].tolist()
    return [(x, y) for (x, y), before in zip(points, [None, *points], strict=False) if [x, y] != before]


def costs(comparison: Comparison, benchmark: str) -> tuple[str, pd.DataFrame]:
    """`GPU time` if every run has some, otherwise `wall-clock time`, and the entries whose time is known, with the columns
    `seconds` (mean over the seeds) and `number` (of the variant, from 1).
    """
    cells = comparison.cells[(comparison.cells["benchmark"] == benchmark) & comparison.cells["score"].notna()]
    on_gpu = bool((cells["gpu_seconds"] > 0).all())
    seconds = cells["gpu_seconds" if on_gpu else "seconds"]
    means = seconds[seconds > 0].groupby(cells["variant"]).mean().rename("seconds")
    entries = comparison.on(benchmark)
    entries = entries.assign(number=range(1, len(entries) + 1)).join(means, on="variant")
    return "GPU time" if on_gpu else "wall-clock time", entries[entries["seconds"].notna()]


def cost_chart(comparison: Comparison, benchmark: str) -> Markup | None:
    """Score against cost: a point per variant with its number; None without a known time."""
    unit, entries = costs(comparison, benchmark)
    if entries.empty:
        return None
    longest = entries["seconds"].max()
    name, size = next(one for one in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 0.0)) if longest >= 2 * one[1])
    times, scores = entries["seconds"] / (size or 1.0), 100 * entries["mean"]
    start, end = LEFT, WIDTH - RIGHT
    across = linear([0, *times], start, end - 10)
    up = linear(scores, COST_HEIGHT - BOTTOM, TOP, 0.1)
    parts = svg_grid(across, up)
    parts.append(svg_text((start + end) / 2, COST_HEIGHT - 10, f"{name} of {unit} per seed", "muted", "middle"))
    places = [(across.at(x), up.at(y)) for x, y in zip(times, scores, strict=True)]
    for entry, (x, y) in zip(rows_of(entries), places, strict=True):
        parts += [_mark(entry, x, y), svg_text(x + 7, y, str(entry.number), "name")]
    title = f"{benchmark}: {FIGURES[comparison.metric]} against {unit} per seed"
    return picture(title, WIDTH, COST_HEIGHT, parts)


def _mark(entry: Any, x: float, y: float) -> Markup:
    title = element("title", f"{entry.variant}: {percent(entry.mean)} % in {time(entry.seconds)}, {entry.verdict}")
    kind = css_class(entry.verdict)
    shapes = {
        "better": [(x, y - 6), (x + 5.5, y + 4.5), (x - 5.5, y + 4.5)],
        "worse": [(x, y + 6), (x + 5.5, y - 4.5), (x - 5.5, y - 4.5)],
        "base": [(x - 4.5, y - 4.5), (x + 4.5, y - 4.5), (x + 4.5, y + 4.5), (x - 4.5, y + 4.5)],
    }
    if kind in shapes:
        return element("path", title, d=f"{svg_path(shapes[kind])}Z", class_=f"mark {kind}")
    return element("circle", title, cx=x, cy=y, r=4.5, class_=f"mark {kind}")


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


def svg_line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg_text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """Text whose vertical middle is at y."""
    # Some programs that print ignore `dominant-baseline`, so the offset is in y.
    return element("text", words, x=x, y=y + 4, class_=class_, text_anchor=anchor)


def svg_path(points: Iterable[tuple[float, float]]) -> str:
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


def svg_grid(across: Axis, up: Axis) -> list[Markup]:
    """Grid lines of a chart with its labels below and on the left."""
    parts = []
    for tick in up.ticks:
        parts.append(svg_line(across.start, up.at(tick), across.end, up.at(tick), "grid"))
        parts.append(svg_text(across.start - 6, up.at(tick), up.label(tick), "muted", "end"))
    for tick in across.ticks:
        parts.append(svg_line(across.at(tick), up.start, across.at(tick), up.end, "grid"))
        parts.append(svg_text(across.at(tick), up.start + 12, across.label(tick), "muted", "middle"))
    return parts


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
