"""Differences between two variants, paired by what they have in common (seed and benchmark)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_PAIRS = 3
"""Below, nothing is said about which is better."""


@dataclass(frozen=True)
class Summary:
    """Scores of one variant."""

    mean: float
    std: float | None
    """Of the sample; None for a single score."""
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """First minus second, pair by pair."""

    mean: float
    low: float | None
    """95 % confidence interval of the mean difference (Student's t); None below two pairs."""
    high: float | None
    p: float | None
    """Two-sided, of no difference."""
    n: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, or `insufficient seeds`."""
        if self.n < LEAST_PAIRS or self.low is None or self.high is None:
            return "insufficient seeds"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


def summarise(scores: Sequence[float]) -> Summary:
    """Mean, standard deviation and number.

    Raises:
        ValueError: without any score.
    """
    return Summary(statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None, len(scores))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """How much larger the first scores are than the second ones with the same position.

    Raises:
        ValueError: without pairs, or for lists of different lengths.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return PairedDifference(mean, None, None, None, len(differences))
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return PairedDifference(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(differences))
    # Not ttest_rel, which warns of differences that rounding alone tells apart: shares of few images often are.
    from scipy.stats import t as students_t

    freedom = len(differences) - 1
    half = float(students_t.ppf(0.975, freedom)) * error
    p = 2 * float(students_t.sf(abs(mean) / error, freedom))
    return PairedDifference(mean, mean - half, mean + half, p, len(differences))
