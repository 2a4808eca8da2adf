"""Score of a trial from the scores of its runs, which trials are compared by at the same step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def mean_normalised(scores: Sequence[float], references: Sequence[float]) -> float:
    """Mean of score / reference over the runs begun so far; a reference of 1 leaves a score as it is."""
    return statistics.fmean(score / reference for score, reference in zip(scores, references, strict=False))


def mean_rank(scores: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Mean over the runs begun so far of the share of other trials that score less there, a tie counting half.

    Trials that lack a run do not count there.
    """
    return statistics.fmean(
        _share_below(score, [other[run] for other in others if run < len(other)]) for run, score in enumerate(scores)
    )


def final_ranks(scores: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Mean rank of every finished trial among all of them, by the trial's number."""
    return {
        number: mean_rank(own, [other for name, other in scores.items() if name != number])
        for number, own in scores.items()
    }


def _share_below(score: float, others: Sequence[float]) -> float:
    if not others:
        return 0.5
    return (sum(other < score for other in others) + 0.5 * sum(other == score for other in others)) / len(others)
