"""Variants × benchmarks: means over seeds, and differences to the base paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.analysis.paired import (
    LEAST_PAIRS,
    PairedDifference,
    Summary,
    bootstrapped_difference,
    holm,
    summarise,
)
from pipeline.analysis.scores import FIGURES, ScoreCard

SIGNIFICANCE = 0.05
"""A corrected p-value below it is needed to call a variant better or worse."""


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
        ValueError: when no card is of the base, for a metric that is no key of `FIGURES`, or for two cards of one cell.
    """
    if metric not in FIGURES:
        raise ValueError(f"there is no metric '{metric}': it is one of {', '.join(FIGURES)}")
    variants = tuple(dict.fromkeys(card.variant for card in cards))
    benchmarks = tuple(dict.fromkeys(card.benchmark for card in cards))
    if base not in variants:
        raise ValueError(f"no card is of the base '{base}': the variants are {', '.join(variants) or 'none'}")
    cells: dict[tuple[str, str], dict[int, ScoreCard]] = {(v, b): {} for v in variants for b in benchmarks}
    for card in sorted(cards, key=lambda card: card.seed):
        of_seed = cells[card.variant, card.benchmark]
        if card.seed in of_seed:
            raise ValueError(f"two cards are of {card.variant} on {card.benchmark} with seed {card.seed}")
        of_seed[card.seed] = card
    differences = {
        (variant, benchmark): _difference(found, cells[base, benchmark], metric)
        for (variant, benchmark), found in cells.items()
        if variant != base
    }
    raw = {place: one.p for place, one in differences.items() if one is not None and one.p is not None}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    entries = []
    for (variant, benchmark), found in cells.items():
        place = variant, benchmark
        scores = _scores(found, metric)
        summary = summarise(list(scores.values())) if scores else None
        difference, p = differences.get(place), corrected.get(place)
        verdict = "base" if variant == base else _verdict(summary, difference, p)
        entries.append(Entry(benchmark, variant, summary, difference, p, verdict, tuple(found.values())))
    return Comparison(metric, split, base, variants, benchmarks, tuple(entries))


def score_of(card: ScoreCard, metric: str) -> float | None:
    """The card's score, as a fraction; None where it has none or one that is no finite number."""
    score = card.metrics.get(metric)
    return score if score is not None and math.isfinite(score) else None


def _scores(found: Mapping[int, ScoreCard], metric: str) -> dict[int, float]:
    scores = {seed: score_of(card, metric) for seed, card in found.items()}
    return {seed: score for seed, score in scores.items() if score is not None}


def _difference(ours: Mapping[int, ScoreCard], theirs: Mapping[int, ScoreCard], metric: str) -> PairedDifference | None:
    first, second = _scores(ours, metric), _scores(theirs, metric)
    both = [seed for seed in first if seed in second]
    return bootstrapped_difference([first[seed] for seed in both], [second[seed] for seed in both]) if both else None


def _verdict(summary: Summary | None, difference: PairedDifference | None, p_holm: float | None) -> str:
    if summary is None:
        return "no score"
    if difference is None or difference.n < LEAST_PAIRS:
        return "insufficient seeds"
    # Few seeds make a bootstrap interval too narrow, and the t-test trusts in a normal distribution: a claim needs both.
    return difference.verdict if p_holm is not None and p_holm < SIGNIFICANCE else "no difference shown"
