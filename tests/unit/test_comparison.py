"""Comparisons against pandas and scipy, and when one variant may be called better than another."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.paired import bootstrap_interval
from pipeline.analysis.scores import ScoreCard


def card(variant: str, seed: int, score: float | None, benchmark: str = "CUB") -> ScoreCard:
    if score is None:
        return ScoreCard(benchmark, variant, seed, "failed", "out of memory")
    return ScoreCard(
        benchmark, variant, seed, "cached", run_id=f"{benchmark}-{variant}-{seed}", metrics={"gzsl_h": score}
    )


def cards_of(scores: dict[str, list[float | None]], benchmark: str = "CUB") -> list[ScoreCard]:
    return [card(variant, seed, score, benchmark) for variant, row in scores.items() for seed, score in enumerate(row)]


def compared(cards: list[ScoreCard]) -> Comparison:
    return compare(cards, "base", "gzsl_h", "final")


BASE = [0.40, 0.43, 0.41, 0.44]
GRID = cards_of({"base": BASE, "more": [0.52, 0.56, 0.53, 0.555], "less": [0.30, 0.34, 0.31, 0.335]}) + cards_of(
    {"base": [0.6, 0.7, 0.65, 0.62], "more": [0.61, 0.68, 0.66, 0.63], "less": [0.3, None, None, 0.31]}, "SUN"
)

scores = st.none() | st.floats(0, 1).map(lambda value: round(value, 3))


@st.composite
def grids(draw: st.DrawFn) -> list[ScoreCard]:
    seeds = draw(st.integers(1, 6))
    rows = st.lists(scores, min_size=seeds, max_size=seeds)
    return [
        one
        for benchmark in ("CUB", "SUN")
        for one in cards_of({variant: draw(rows) for variant in ("base", "a", "b")}, benchmark)
    ]


def test_means_and_deviations_are_those_of_pandas() -> None:
    frame = pd.DataFrame([(c.variant, c.benchmark, c.metrics["gzsl_h"]) for c in GRID if c.has_score])
    expected = frame.groupby([0, 1])[2].agg(["mean", "std", "count"])
    for entry in compared(GRID).entries:
        row = expected.loc[(entry.variant, entry.benchmark)]
        assert entry.summary is not None and entry.summary.n == row["count"]
        assert (entry.summary.mean, entry.summary.std) == pytest.approx((row["mean"], row["std"]))


def test_differences_are_paired_by_seed_within_a_benchmark_and_corrected_together() -> None:
    found = compared(GRID)
    frame = pd.DataFrame([(c.benchmark, c.variant, c.seed, c.metrics.get("gzsl_h")) for c in GRID])
    wide = frame.pivot(index=[0, 2], columns=1, values=3)
    raw = {}
    for entry in found.entries:
        if entry.variant == "base":
            assert entry.difference is None and entry.p_holm is None
            continue
        both = wide.loc[entry.benchmark][[entry.variant, "base"]].dropna()
        differences = (both[entry.variant] - both["base"]).tolist()
        assert entry.difference is not None and entry.difference.n == len(both)
        assert entry.difference.mean == pytest.approx(sum(differences) / len(both))
        assert (entry.difference.low, entry.difference.high) == pytest.approx(bootstrap_interval(differences))
        raw[entry.p_holm] = stats.ttest_rel(both[entry.variant], both["base"]).pvalue
        assert entry.difference.p == pytest.approx(raw[entry.p_holm])
    largest = 0.0
    for rank, (corrected, p) in enumerate(sorted(raw.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (4 - rank) * p))
        assert corrected == pytest.approx(largest)


def test_verdicts_and_the_order_of_entries() -> None:
    found = compared(GRID)
    assert (found.variants, found.benchmarks) == (("base", "more", "less"), ("CUB", "SUN"))
    assert [(one.variant, one.benchmark, one.verdict) for one in found.entries] == [
        ("base", "CUB", "base"),
        ("base", "SUN", "base"),
        ("more", "CUB", "better"),
        ("more", "SUN", "no difference shown"),
        ("less", "CUB", "worse"),
        ("less", "SUN", "insufficient seeds"),
    ]
    assert [one.seed for one in found.entry("less", "SUN").cards] == [0, 1, 2, 3]


def test_without_a_score_or_a_common_seed_nothing_is_compared() -> None:
    found = compared(cards_of({"base": [None, 0.4, None], "other": [0.5, None, 0.6], "gone": [None, None, None]}))
    other, gone = found.entry("other", "CUB"), found.entry("gone", "CUB")
    assert other.summary is not None and other.summary.n == 2
    assert (other.difference, other.p_holm, other.verdict) == (None, None, "insufficient seeds")
    assert (gone.summary, gone.difference, gone.verdict) == (None, None, "no score")
    assert len(gone.cards) == 3


def test_a_variant_that_was_never_planned_on_a_benchmark_is_an_entry_without_cards() -> None:
    found = compared([*cards_of({"base": BASE}), *cards_of({"base": BASE, "new": BASE}, "SUN")])
    entry = found.entry("new", "CUB")
    assert (entry.cards, entry.summary, entry.verdict) == ((), None, "no score")


def test_one_pair_has_a_difference_without_p() -> None:
    entry = compared(cards_of({"base": [0.25], "other": [0.5]})).entry("other", "CUB")
    assert entry.difference is not None and entry.difference.mean == 0.25
    assert (entry.p_holm, entry.verdict) == (None, "insufficient seeds")


@pytest.mark.parametrize(("by", "verdict"), [(0.25, "better"), (-0.25, "worse"), (0.0, "no difference shown")])
def test_the_same_difference_with_every_seed(by: float, verdict: str) -> None:
    base: list[float | None] = [0.25, 0.5, 0.375]
    entry = compared(cards_of({"base": base, "other": [0.25 + by, 0.5 + by, 0.375 + by]})).entry("other", "CUB")
    assert (entry.verdict, entry.p_holm) == (verdict, 0.0 if by else 1.0)


def test_correction_takes_back_what_one_test_alone_would_have_claimed() -> None:
    claimed: dict[str, list[float | None]] = {"base": [0.40, 0.43, 0.41], "other": [0.43, 0.45, 0.435]}
    assert compared(cards_of(claimed)).entry("other", "CUB").verdict == "better"
    many = claimed | {f"same{index}": [0.41, 0.425, 0.412] for index in range(4)}
    entry = compared(cards_of(many)).entry("other", "CUB")
    assert entry.difference is not None and entry.difference.low is not None and entry.difference.low > 0
    assert entry.verdict == "no difference shown"


def test_a_small_p_is_no_claim_where_a_few_bad_seeds_stretch_the_interval_over_zero() -> None:
    gains = [0.01] * 20 + [-0.035] * 2
    entry = compared(cards_of({"base": [0.5] * 22, "other": [0.5 + gain for gain in gains]})).entry("other", "CUB")
    assert entry.difference is not None and entry.difference.low is not None and entry.difference.low < 0
    assert entry.p_holm is not None and entry.p_holm < 0.05
    assert entry.verdict == "no difference shown"


def test_stale_scores_count_and_scores_that_are_no_number_do_not() -> None:
    cards = cards_of({"base": BASE, "other": [0.5, 0.54, 0.52, math.nan]})
    found = compared([replace(one, state="stale") for one in cards]).entry("other", "CUB")
    assert found.summary is not None and found.summary.n == 3 and found.verdict == "better"
    assert {one.state for one in found.cards} == {"stale"} and len(found.cards) == 4


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no card is of the base 'full': the variants are base, more, less"):
        compare(GRID, "full", "gzsl_h", "final")
    with pytest.raises(ValueError, match="no card is of the base"):
        compare([], "base", "gzsl_h", "final")
    with pytest.raises(ValueError, match="there is no metric 'accuracy'"):
        compare(GRID, "base", "accuracy", "final")
    with pytest.raises(ValueError, match="two cards are of base on CUB with seed 0"):
        compared([*GRID, GRID[0]])


@settings(max_examples=40)
@given(grids())
def test_nothing_is_claimed_on_few_seeds_or_where_the_interval_holds_zero(cards: list[ScoreCard]) -> None:
    for entry in compared(cards).entries:
        if entry.verdict not in ("better", "worse"):
            continue
        difference = entry.difference
        assert difference is not None and difference.n >= 3 and entry.p_holm is not None and entry.p_holm < 0.05
        assert difference.low is not None and difference.high is not None
        assert difference.low > 0 if entry.verdict == "better" else difference.high < 0


@settings(max_examples=40)
@given(grids(), st.randoms())
def test_the_order_of_seeds_changes_nothing(cards: list[ScoreCard], random: Random) -> None:
    seeds = sorted({one.seed for one in cards})
    random.shuffle(seeds)
    assert compared(sorted(cards, key=lambda one: seeds.index(one.seed))) == compared(cards)
