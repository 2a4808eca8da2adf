"""Charts of the report page, drawn by `charts.svg.j2`: differences, levels and their sum, curves, cost against score. Lengths are in pixels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.path import Path as Line
from matplotlib.ticker import MaxNLocator

from pipeline.analysis.comparison import VERDICTS, Comparison
from pipeline.analysis.page.templates import page_template
from pipeline.analysis.runs import LEVEL_FIGURES, SYMBOLS, rows_of
from pipeline.analysis.tables import percent
from pipeline.console import duration

WIDTH = 400.0
VALUE = 72.0
"""Width of the column of numbers on the right of the bars."""
WIDEST_NAME = 130.0
"""Widest name beside a bar; wider ones stand above their bars."""
MARK = 10.0
"""Radius of the mark of a level."""
PANEL, PANEL_LEFT, PANEL_BOTTOM, PANEL_MARGIN = 210.0, 36.0, 36.0, 8.0
"""Side and margins of a panel of curves."""
TOLERANCE = 0.4
"""Largest distance between a curve and its drawing."""
CHARACTER = 6.8
"""Estimated width of a character of the charts' text."""
MOST_STEPS = 5
COST_HEIGHT = 280.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 24.0, 12.0, 40.0
"""Margins of the cost chart."""
UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
"""Units of the cost chart, in seconds; the largest that the longest run reaches twice is used."""

SIGNS = dict(zip(VERDICTS, "▲▼○?×■", strict=True))
"""Verdict → sign, which makes the verdicts readable without colour."""

Point = tuple[float, float]


class Curve(NamedTuple):
    """Seen–unseen curve of one run, and the point that its γ chooses; None where the run has no score."""

    line: Sequence[Point]
    mark: Point | None


def points(difference: float) -> str:
    """A difference of fractions in percentage points with its sign; the minus is as wide as the plus."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def time(seconds: float) -> str:
    """Seconds like `0.25 s`, `45 s` or `2 h 10 min`."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def px(length: float) -> str:
    """A length with one decimal at most."""
    return f"{length:.1f}".removesuffix(".0")


@cache
def _macros() -> Any:
    template = page_template(Path(__file__).with_name("charts.svg.j2"), (percent, points, px, time))
    return template.make_module({"signs": SIGNS})


def bar_chart(comparison: Comparison, benchmark: str) -> Markup:
    """Differences to the base with their intervals; the scale is the same for every benchmark of the comparison."""
    entries = [one for one in rows_of(comparison.on(benchmark)) if one.variant != comparison.base]
    names_above, start = _name_column(one.variant for one in entries)
    ends = (100 * comparison.entries[["difference", "low", "high"]]).stack().dropna()
    axis = linear([0.0, *ends], start, WIDTH - VALUE, 0.04)
    title = f"{benchmark}: {SYMBOLS[comparison.metric]} of each variant less that of {comparison.base}"
    return Markup(_macros().bars(title, entries, axis, names_above, WIDTH))


def _name_column(names: Iterable[str]) -> tuple[bool, float]:
    """Whether names stand above their rows, and where the axis beside or below them begins."""
    widest = CHARACTER * max(map(len, names), default=0)
    return widest > WIDEST_NAME, 24 if widest > WIDEST_NAME else widest + 8


def level_chart(comparison: Comparison, benchmark: str) -> Markup | None:
    """AUSUC of each level alone and of the sum of their scores, means over seeds, a row per variant; None without such runs."""
    cells = comparison.cells[comparison.cells["benchmark"] == benchmark]
    means = 100 * cells.groupby("variant", sort=False)[["ausuc", *LEVEL_FIGURES]].mean()
    alone = means[list(LEVEL_FIGURES)].dropna(how="all").dropna(axis="columns", how="all")
    if alone.empty:
        return None
    names_above, start = _name_column(alone.index)
    axis = linear([*alone.stack(), *means.loc[alone.index, "ausuc"]], start + MARK, WIDTH - VALUE - MARK, 0.04)
    rows = [
        (name, [*levels.dropna().items(), ("sum", total)], total, levels.mean())
        for (name, levels), total in zip(alone.iterrows(), means.loc[alone.index, "ausuc"], strict=True)
    ]
    title = f"{benchmark}: AUSUC of each level alone and of their sum"
    return Markup(_macros().levels(title, rows, axis, names_above, WIDTH))


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

    def place(unseen: float, seen: float) -> Point:
        return across.at(100 * unseen), up.at(100 * seen)

    drawn: dict[str, list[Curve]] = {}
    for run_id, curve in here.groupby("run_id", sort=False):
        rows = rows_of(curve)
        line = simplified([place(one.unseen, one.seen) for one in rows])
        is_scored = run_id in chosen.index
        mark = place(chosen["gzsl_u"][run_id], chosen["gzsl_s"][run_id]) if is_scored else None
        drawn.setdefault(rows[0].variant, []).append(Curve(line, mark))
    panels = []
    for variant in (one for one in comparison.variants if one in drawn):
        base = [] if variant == comparison.base else drawn.get(comparison.base, [])
        title = f"Seen–unseen curves on {benchmark}: {variant}"
        panels.append((variant, Markup(_macros().panel(title, across, up, base, drawn[variant], PANEL))))
    return panels


def simplified(line: Sequence[Point]) -> list[Point]:
    """Points of a line that its drawing needs: the others lie within `TOLERANCE` of the line between them."""
    path = Line(line)
    path.simplify_threshold = TOLERANCE
    drawn = path.cleaned(simplify=True)
    points = np.asarray(drawn.vertices)[np.asarray(drawn.codes) != Line.STOP].tolist()
    return [(x, y) for (x, y), before in zip(points, [None, *points], strict=False) if [x, y] != before]


def costs(comparison: Comparison, benchmark: str) -> tuple[str, pd.DataFrame]:
    """`GPU time` if every run has some, else `wall-clock time`; and the entries with a time, with mean `seconds` and a `number`."""
    cells = comparison.cells[(comparison.cells["benchmark"] == benchmark) & comparison.cells["score"].notna()]
    on_gpu = bool((cells["gpu_seconds"] > 0).all())
    seconds = cells["gpu_seconds" if on_gpu else "seconds"]
    means = seconds[seconds > 0].groupby(cells["variant"]).mean().rename("seconds")
    entries = comparison.on(benchmark)
    entries = entries.assign(number=range(1, len(entries) + 1)).join(means, on="variant")
    return "GPU time" if on_gpu else "wall-clock time", entries[entries["seconds"].notna()]


def cost_chart(comparison: Comparison, benchmark: str) -> Markup | None:
    """Score against cost: a point per variant with its number; None without a known time."""
    kind, entries = costs(comparison, benchmark)
    if entries.empty:
        return None
    name = next((one for one in UNITS if entries["seconds"].max() >= 2 * UNITS[one]), "seconds")
    unit = UNITS[name]
    across = linear([0, *entries["seconds"] / unit], LEFT, WIDTH - RIGHT)
    up = linear(100 * entries["mean"], COST_HEIGHT - BOTTOM, TOP, 0.1)
    title = f"{benchmark}: {SYMBOLS[comparison.metric]} against {kind} per seed"
    label = f"{name} of {kind} per seed"
    return Markup(_macros().costs(title, label, unit, rows_of(entries), across, up, WIDTH, COST_HEIGHT))


@dataclass(frozen=True)
class Axis:
    """Scale from values to positions."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    decimals: int
    """Decimals that tell the ticks apart."""

    def label(self, tick: float) -> str:
        return f"{tick:.{self.decimals}f}"

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float, margin: float = 0.0) -> Axis:
    """Linear axis over values, with at most six round ticks; the margin is a share of their span, added on both sides."""
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
