"""Numbers, verdicts and states as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.analysis.comparison import SIGNIFICANCE, Comparison
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.analysis.scores import FIGURES, CellState
from pipeline.console import duration

VERDICTS = {
    "better": "▲",
    "worse": "▼",
    "no difference shown": "○",
    "insufficient seeds": "?",
    "no score": "×",
    "base": "■",
}
"""In the order of the answer, with a sign that needs no colour."""
MEANINGS = {
    "zsl_t1": "accuracy among the unseen classes alone",
    "gzsl_u": "accuracy on unseen classes among all classes",
    "gzsl_s": "accuracy on seen classes among all classes",
    "gzsl_h": "harmonic mean of S and U at the γ chosen on validation classes",
    "gzsl_h_oracle": "harmonic mean at the best γ of the test curve itself: an oracle",
    "ausuc": "area under the seen–unseen curve",
}
SPLITS = {"final": "test classes", "tune": "validation classes, not a test result"}
STATES: Mapping[CellState, str] = {
    "cached": "finished",
    "stale": "stale",
    "running": "running",
    "failed": "failed",
    "new": "not run yet",
    "missing": "benchmark missing",
}


def percent(score: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100 * score:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points behind its sign, with a minus that is as wide as a plus."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def probability(p: float) -> str:
    """`p = 0.031` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def time(seconds: float) -> str:
    """Like `0.25 s`, `45 s` or `2 h 10 min`."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def symbol(metric: str) -> str:
    """The field's name of a metric."""
    return FIGURES.get(metric, metric)


def css_class(verdict: str) -> str:
    """Of a verdict, for colours."""
    return verdict.replace(" ", "-") if verdict in VERDICTS else "no-score"


@dataclass(frozen=True)
class Group:
    """Variants of one benchmark that have the same verdict."""

    verdict: str
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What one benchmark says of all variants."""

    benchmark: str
    groups: tuple[Group, ...]


def rule(comparison: Comparison) -> str:
    """What has to hold before a variant is called better or worse."""
    corrected = sum(entry.p_holm is not None for entry in comparison.entries)
    return (
        f"Better or worse is said from {LEAST_PAIRS} seeds in common with {comparison.base} on, where p < {SIGNIFICANCE} in the "
        f"paired t-test, corrected by Holm (differences: {corrected}), and the bootstrapped 95 % interval is without zero. "
        "No difference shown does not mean that there is none."
    )


def answers(comparison: Comparison) -> list[Answer]:
    """The plain answer, benchmark by benchmark."""
    found = []
    for benchmark in comparison.benchmarks:
        entries = [one for one in comparison.entries if one.benchmark == benchmark and one.variant != comparison.base]
        groups = (
            Group(verdict, tuple(one.variant for one in entries if one.verdict == verdict)) for verdict in VERDICTS
        )
        found.append(Answer(benchmark, tuple(group for group in groups if group.variants)))
    return found


def counts(comparison: Comparison) -> str:
    """Like `2 better, 1 no difference shown`."""
    verdicts = [one.verdict for one in comparison.entries if one.variant != comparison.base]
    numbers = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    return ", ".join(f"{number} {verdict}" for verdict, number in numbers.items() if number)
