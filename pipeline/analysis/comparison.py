"""Variants × benchmarks: means over seeds, and differences to the base paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.analysis.paired import PairedDifference, Summary
from pipeline.analysis.scores import ScoreCard


@dataclass(frozen=True)
class Entry:
    """One variant on one benchmark."""

    benchmark: str
    variant: str
    summary: Summary | None
    """None where no seed has a score."""
    difference: PairedDifference | None
    """Variant minus base over the seeds that both have; None for the base, and without such seeds."""
    p_holm: float | None
    """The difference's p-value, corrected by Holm over all entries of the comparison that have one."""
    verdict: str
    """`base`, `better`, `worse`, `no difference shown`, `insufficient seeds`, or `no score`."""
    cards: tuple[ScoreCard, ...]
    """Of every seed, also of those without a score."""


@dataclass(frozen=True)
class Comparison:
    """All variants on all benchmarks by one metric."""

    metric: str
    """A key of `FIGURES`."""
    split: str
    """`final` or `tune`: what the scores were measured on."""
    base: str
    """The variant that the others are compared with."""
    variants: tuple[str, ...]
    benchmarks: tuple[str, ...]
    entries: tuple[Entry, ...]
    """Every variant on every benchmark, variant by variant."""

    def entry(self, variant: str, benchmark: str) -> Entry:
        """One of the entries."""
        return next(one for one in self.entries if (one.variant, one.benchmark) == (variant, benchmark))


def compare(cards: Sequence[ScoreCard], base: str, metric: str, split: str) -> Comparison:
    """Compares all variants among the cards with one of them; their order is that of the cards.

    Raises:
        ValueError: when no card is of the base.
    """
    raise NotImplementedError
