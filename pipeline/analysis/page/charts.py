"""Charts of the report page as SVG: differences to the base, seen–unseen curves, cost against score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.analysis.comparison import VERDICTS, Comparison
from pipeline.analysis.page import svg
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
    widest = svg.CHARACTER * max((len(one.variant) for one in entries), default=0)
    above = widest > WIDEST_NAME
    row = ROW + NAME_ROW * above
    ends = (100 * comparison.entries[["difference", "low", "high"]]).stack().dropna()
    axis = svg.linear([0.0, *ends], 24 if above else widest + 8, WIDTH - VALUE, 0.04)
    bottom = 6 + row * len(entries)
    parts = [svg.line(axis.at(tick), 4, axis.at(tick), bottom, "grid") for tick in axis.ticks]
    parts.append(svg.line(axis.at(0), 4, axis.at(0), bottom, "zero"))
    for index, entry in enumerate(entries):
        top = 6 + row * index
        name = entry.variant
        y = top + row - ROW / 2 - 2 * above
        label = svg.text(0, top + NAME_ROW - 5, name, "name") if above else svg.text(axis.start - 8, y, name, "", "end")
        parts.append(svg.element("g", *_bar(entry, label, axis, y)))
    for tick in axis.ticks:
        text = f"{tick:+.{axis.decimals}f}".replace("-", "−") if tick else "0"
        parts.append(svg.text(axis.at(tick), bottom + 10, text, "muted", "middle"))
    parts.append(svg.text((axis.start + axis.end) / 2, bottom + 26, "difference to base, points", "muted", "middle"))
    title = f"{benchmark}: {FIGURES[comparison.metric]} of each variant less that of {comparison.base}"
    return svg.picture(title, WIDTH, bottom + 36, parts)


def _bar(entry: Any, label: Markup, axis: svg.Axis, y: float) -> Iterator[Markup]:
    """Elements of one row, the first of which is its tooltip."""
    sign = SIGNS[entry.verdict]
    if not entry.pairs:
        yield svg.element("title", f"{entry.variant}: {entry.verdict}")
        yield label
        yield svg.text(WIDTH, y, f"{sign} {entry.verdict}", "muted", "end")
        return
    mean, seeds = points(entry.difference), f"{entry.pairs} seed{'s' * (entry.pairs > 1)}"
    yield svg.element("title", f"{entry.variant}: {mean} over {seeds}, {entry.verdict}")
    yield label
    left, right = sorted((axis.at(0), axis.at(100 * entry.difference)))
    yield svg.element("rect", x=left, y=y - 6, width=right - left, height=12, class_=f"bar {css_class(entry.verdict)}")
    if entry.pairs > 1:
        low, high = axis.at(100 * entry.low), axis.at(100 * entry.high)
        yield svg.line(low, y, high, y, "interval")
        yield from (svg.line(x, y - 4, x, y + 4, "interval") for x in (low, high))
    yield svg.text(WIDTH, y, f"{sign} {mean}", anchor="end")


def curve_panels(comparison: Comparison, curves: pd.DataFrame, benchmark: str) -> list[tuple[str, Markup]]:
    """A panel per variant that has a curve on a benchmark, all on one scale: the curves of its seeds before those of the base,
    and marks at the γ of the runs. `curves` has a row per point: `benchmark`, `variant`, `run_id`, `seen`, `unseen`.
    """
    here = curves[curves["benchmark"] == benchmark]
    if here.empty:
        return []
    top = 100 * here[["seen", "unseen"]].to_numpy().max()
    across = svg.linear([0, top], PANEL_LEFT, PANEL - PANEL_MARGIN)
    up = svg.linear([0, top], PANEL - PANEL_BOTTOM, PANEL_MARGIN)
    chosen = comparison.cells.dropna(subset=["gzsl_s", "gzsl_u"]).drop_duplicates("run_id").set_index("run_id")

    def drawn(variant: str, kind: str) -> tuple[list[Markup], list[Markup]]:
        lines, marks = [], []
        for run_id, curve in here[here["variant"] == variant].groupby("run_id", sort=False):
            line = [(across.at(100 * one.unseen), up.at(100 * one.seen)) for one in rows_of(curve)]
            lines.append(svg.element("path", d=svg.path(simplified(line)), class_=f"curve {kind}"))
            if run_id in chosen.index:
                x, y = across.at(100 * chosen["gzsl_u"][run_id]), up.at(100 * chosen["gzsl_s"][run_id])
                if kind == "base":
                    marks.append(svg.element("rect", x=x - 3, y=y - 3, width=6, height=6, class_="chosen base"))
                else:
                    marks.append(svg.element("circle", cx=x, cy=y, r=3.5, class_="chosen own"))
        return lines, marks

    grid = svg.grid(across, up)
    grid.append(svg.text((across.start + across.end) / 2, PANEL - 8, "U, unseen, %", "muted", "middle"))
    grid.append(svg.text(6, (up.start + up.end) / 2, "S", "muted", "middle"))
    base_lines, base_marks = drawn(comparison.base, "base")
    panels = []
    for variant in comparison.variants:
        lines, marks = drawn(variant, "own")
        if lines:
            behind, squares = ([], []) if variant == comparison.base else (base_lines, base_marks)
            title = f"Seen–unseen curves on {benchmark}: {variant}"
            panels.append((variant, svg.picture(title, PANEL, PANEL, [*grid, *behind, *lines, *squares, *marks])))
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
    across = svg.linear([0, *times], start, end - 10)
    up = svg.linear(scores, COST_HEIGHT - BOTTOM, TOP, 0.1)
    parts = svg.grid(across, up)
    parts.append(svg.text((start + end) / 2, COST_HEIGHT - 10, f"{name} of {unit} per seed", "muted", "middle"))
    places = [(across.at(x), up.at(y)) for x, y in zip(times, scores, strict=True)]
    for entry, (x, y) in zip(rows_of(entries), places, strict=True):
        parts += [_mark(entry, x, y), svg.text(x + 7, y, str(entry.number), "name")]
    title = f"{benchmark}: {FIGURES[comparison.metric]} against {unit} per seed"
    return svg.picture(title, WIDTH, COST_HEIGHT, parts)


def _mark(entry: Any, x: float, y: float) -> Markup:
    title = svg.element("title", f"{entry.variant}: {percent(entry.mean)} % in {time(entry.seconds)}, {entry.verdict}")
    kind = css_class(entry.verdict)
    shapes = {
        "better": [(x, y - 6), (x + 5.5, y + 4.5), (x - 5.5, y + 4.5)],
        "worse": [(x, y + 6), (x + 5.5, y - 4.5), (x - 5.5, y - 4.5)],
        "base": [(x - 4.5, y - 4.5), (x + 4.5, y - 4.5), (x + 4.5, y + 4.5), (x - 4.5, y + 4.5)],
    }
    if kind in shapes:
        return svg.element("path", title, d=f"{svg.path(shapes[kind])}Z", class_=f"mark {kind}")
    return svg.element("circle", title, cx=x, cy=y, r=4.5, class_=f"mark {kind}")
