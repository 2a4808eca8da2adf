"""Two runs, figure by figure: the same to the last bit at every step, or near enough in what they came to.

On the same machine with the same code, data and versions a run repeats itself bit for bit, so one differing bit at one step is a finding.
Elsewhere sums are taken in another order, and training carries the difference on: then only what a run came to, the last value
of a figure on validation or test images, is held against a tolerance, and losses on the way are shown and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.tracking.history import Histories

SCORED = ("val/", "test/")
"""Figures on images that the run was not trained on."""
COMPARED = ("train/", *SCORED)
"""Metrics that follow from config, data and code; `perf/` follows from the machine."""

MetricVerdict = Literal["equal", "within tolerance", "differs", "missing", "not judged"]
Verdict = Literal["equal", "within tolerance", "differs"]


@dataclass(frozen=True)
class MetricComparison:
    """One metric of both runs."""

    metric: str
    was: float | None
    """Last value of the run that is reproduced; None where it has none."""
    now: float | None
    difference: float | None
    """Largest of all steps that both have; None without such a step."""
    verdict: MetricVerdict


def compare_histories(was: Histories, now: Histories, tolerance: float | None) -> list[MetricComparison]:
    """Every metric of either run.

    Args:
        was: of the run that is reproduced.
        now: of the reproduction.
        tolerance: largest difference of a last value, absolute, or relative where the value is above 1; None demands the same
            bits at every step.
    """
    return [_compare(metric, was.get(metric, {}), now.get(metric, {}), tolerance) for metric in sorted({*was, *now})]


def overall(metrics: Sequence[MetricComparison]) -> Verdict:
    """The worst of them; runs without any metric differ."""
    found = {one.verdict for one in metrics} - {"not judged"}
    if not found or found & {"differs", "missing"}:
        return "differs"
    return "within tolerance" if "within tolerance" in found else "equal"


def _compare(
    metric: str, was: Mapping[int, float], now: Mapping[int, float], tolerance: float | None
) -> MetricComparison:
    last_was, last_now = _last(was), _last(now)
    difference = max((_distance(was[step], now[step]) for step in was.keys() & now.keys()), default=None)
    return MetricComparison(metric, last_was, last_now, difference, _verdict(metric, was, now, tolerance))


def _verdict(metric: str, was: Mapping[int, float], now: Mapping[int, float], tolerance: float | None) -> MetricVerdict:
    if was.keys() == now.keys() and all(_distance(was[step], now[step]) == 0 for step in was):
        return "equal"
    if tolerance is None:
        return "differs" if was.keys() == now.keys() else "missing"
    if not metric.startswith(SCORED):
        return "not judged"
    last_was, last_now = _last(was), _last(now)
    if last_was is None or last_now is None:
        return "missing"
    near = _distance(last_was, last_now) <= tolerance * max(1.0, abs(last_was))
    return "within tolerance" if near else "differs"


def _last(history: Mapping[int, float]) -> float | None:
    return history[max(history)] if history else None


def _distance(was: float, now: float) -> float:
    """Zero for the same value, also where it is no number or infinite; infinite where one of the two alone is."""
    if was == now or (math.isnan(was) and math.isnan(now)):
        return 0.0
    distance = abs(was - now)
    return distance if math.isfinite(distance) else math.inf
