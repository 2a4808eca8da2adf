"""Differences between two variants, paired by seed. scipy's statistics take a second to load, so they are imported where they are used."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEAST_PAIRS = 3
"""Least number of pairs at which a variant is called better or worse."""
RESAMPLES = 9999


@dataclass(frozen=True)
class Summary:
    """Mean and spread of the scores of one variant."""

    mean: float
    std: float | None
    """Standard deviation of the sample; None for a single score."""
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """First minus second, pair by pair."""

    mean: float
    low: float | None
    """Bounds of the 95 % confidence interval of the mean, by Student's t or bootstrapped; None below two pairs."""
    high: float | None
    p: float | None
    """p-value of Student's paired t-test, two-sided, uncorrected; None below two pairs."""
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
    """Mean, standard deviation and number; raises ValueError without any score."""
    return Summary(statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None, len(scores))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Difference of scores at the same positions, with the interval by Student's t; a ValueError without pairs, or for other lengths."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return PairedDifference(mean, None, None, None, len(differences))
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return PairedDifference(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(differences))
    from scipy.stats import t as students_t

    # scipy's ttest_rel warns where differences are equal but for rounding, which is common for shares of few images.
    freedom = len(differences) - 1
    half = float(students_t.ppf(0.975, freedom)) * error
    p = 2 * float(students_t.sf(abs(mean) / error, freedom))
    return PairedDifference(mean, mean - half, mean + half, p, len(differences))


def bootstrapped_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """`paired_difference` with a percentile bootstrap of the mean, deterministic and independent of the order of the pairs."""
    difference = paired_difference(first, second)
    if difference.low == difference.high:  # One pair has no interval, and equal differences have one without width.
        return difference
    from scipy.stats import bootstrap

    # A fixed generator draws positions: sorting makes the interval independent of the order of the seeds.
    differences, rng = np.sort(np.subtract(first, second)), np.random.default_rng(0)
    found = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    return replace(difference, low=float(found.confidence_interval.low), high=float(found.confidence_interval.high))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction of p-values that are claimed together, in the order given; at most 1."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(np.minimum(np.arange(len(p), 0, -1) * p[order], 1.0))
    return tuple(corrected.tolist())
