"""Seen–unseen curves of one variant before those of the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from pipeline.analysis.comparison import score_of
from pipeline.analysis.page import svg
from pipeline.analysis.page.content import Curve, PageContent
from pipeline.analysis.scores import ScoreCard

SIZE = 210.0
LEFT, BOTTOM, MARGIN = 36.0, 36.0, 8.0
TOLERANCE = 0.4
"""Pixels by which a drawn curve may be off."""

Point = tuple[float, float]


def curve_panels(content: PageContent, benchmark: str) -> list[tuple[str, Markup]]:
    """A panel per variant that has a curve there, all on one scale: every seed's curve, and the point that γ chose."""
    here = [one for one in content.curves if one.benchmark == benchmark and one.points]
    top = 100 * max((value for one in here for point in one.points for value in point), default=1.0)
    across = svg.linear([0, top], LEFT, SIZE - MARGIN)
    up = svg.linear([0, top], SIZE - BOTTOM, MARGIN)
    grid = [*_grid(across, up)]
    chosen = {card.run_id: _chosen(card) for card in content.runs}

    def drawn(variant: str, class_: str) -> tuple[list[Markup], list[Markup]]:
        curves = [one for one in here if one.variant == variant]
        lines = [_line(one, across, up, class_) for one in curves]
        places = (chosen.get(one.run_id) for one in curves)
        return lines, [_marker(*place, across, up, class_) for place in places if place is not None]

    base_lines, base_markers = drawn(content.primary.base, "base")
    panels = []
    for variant in content.primary.variants:
        lines, markers = drawn(variant, "own")
        if not lines:
            continue
        behind, squares = ([], []) if variant == content.primary.base else (base_lines, base_markers)
        title = f"Seen–unseen curves on {benchmark}: {variant}"
        panels.append((variant, svg.picture(title, SIZE, SIZE, [*grid, *behind, *lines, *squares, *markers])))
    return panels


def _grid(across: svg.Axis, up: svg.Axis) -> Iterable[Markup]:
    for tick in across.ticks:
        label = f"{tick:.{across.decimals}f}" if tick else "0"
        yield svg.line(across.at(tick), up.start, across.at(tick), up.end, "grid")
        yield svg.line(across.start, up.at(tick), across.end, up.at(tick), "grid")
        yield svg.text(across.at(tick), up.start + 11, label, "muted", "middle")
        yield svg.text(across.start - 5, up.at(tick), label, "muted", "end")
    yield svg.text((across.start + across.end) / 2, SIZE - 8, "U, unseen, %", "muted", "middle")
    yield svg.text(6, (up.start + up.end) / 2, "S", "muted", "middle")


def _line(curve: Curve, across: svg.Axis, up: svg.Axis, class_: str) -> Markup:
    points = simplified([(across.at(100 * unseen), up.at(100 * seen)) for seen, unseen in curve.points])
    return svg.element("path", d=svg.path(points), class_=f"curve {class_}")


def _chosen(card: ScoreCard) -> Point | None:
    """(S, U) at the run's γ."""
    seen, unseen = score_of(card, "gzsl_s"), score_of(card, "gzsl_u")
    return None if seen is None or unseen is None else (seen, unseen)


def _marker(seen: float, unseen: float, across: svg.Axis, up: svg.Axis, class_: str) -> Markup:
    x, y = across.at(100 * unseen), up.at(100 * seen)
    if class_ == "base":
        return svg.element("rect", x=x - 3, y=y - 3, width=6, height=6, class_="chosen base")
    return svg.element("circle", cx=x, cy=y, r=3.5, class_="chosen own")


def simplified(points: Sequence[Point]) -> list[Point]:
    """The points that a drawing needs: those left out are nearly on the line between their neighbours."""
    kept = list(points[:1])
    for point in points[1:]:
        if math.dist(point, kept[-1]) > TOLERANCE:
            kept.append(point)
    if len(kept) < 3:
        return kept
    needed = {0, len(kept) - 1}
    stretches = [(0, len(kept) - 1)]
    while stretches:
        first, last = stretches.pop()
        inside = range(first + 1, last)
        farthest = max(inside, key=lambda index: _off(kept[index], kept[first], kept[last]), default=None)
        if farthest is not None and _off(kept[farthest], kept[first], kept[last]) > TOLERANCE:
            needed.add(farthest)
            stretches += [(first, farthest), (farthest, last)]
    return [kept[index] for index in sorted(needed)]


def _off(point: Point, start: Point, end: Point) -> float:
    """Distance of a point from the stretch between two others."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = dx * dx + dy * dy
    if length == 0:
        return math.dist(point, start)
    share = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / length
    share = min(max(share, 0.0), 1.0)
    return math.dist(point, (start[0] + share * dx, start[1] + share * dy))
