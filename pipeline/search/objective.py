"""Objective of a trial from the figures of its runs. Pure functions.

A trial has a run for each benchmark and seed. Trials are compared at the same step (epochs over all runs), where all have begun the same
runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

METRIC_KEYS = {"ausuc": "val/ausuc", "h": "val/gzsl_h"}
"""Name of an objective in a search's file → the tracked metric, of the `tune` split."""
COST_KEYS: Mapping[str, str] = {"step_ms": "perf/step_ms", "parameters": "perf/parameters"}


def mean_normalised(scores: Sequence[float], references: Sequence[float]) -> float:
    """Mean over the runs begun so far of score / reference.

    Args:
        scores: of each run begun so far.
        references: the base's score on the benchmark of each run; 1 leaves a score as it is.
    """
    return statistics.fmean(score / reference for score, reference in zip(scores, references, strict=False))


def mean_rank(scores: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Mean over the runs begun so far of the share of other trials that score less there, a tie counting half; in [0, 1].

    Args:
        scores: of each run begun so far.
        others: the other trials' scores at the same step; shorter ones are passed over where they lack a run.
    """
    return statistics.fmean(
        _share_below(score, [other[run] for other in others if run < len(other)]) for run, score in enumerate(scores)
    )


def final_ranks(scores: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Every finished trial's mean rank among all of them: what names the best where ranks are searched for."""
    return {
        number: mean_rank(own, [other for name, other in scores.items() if name != number])
        for number, own in scores.items()
    }


def _share_below(score: float, others: Sequence[float]) -> float:
    if not others:
        return 0.5
    return (sum(other < score for other in others) + 0.5 * sum(other == score for other in others)) / len(others)
