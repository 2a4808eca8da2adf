"""Comparisons against pandas and scipy, and the conditions for calling one variant better than another."""

from __future__ import annotations

import math
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.analysis.comparison import CELL_COLUMNS, Comparison, compare
from pipeline.analysis.paired import bootstrap_interval
from pipeline.analysis.runs import FIGURES


def cells_of(scores: dict[str, list[float | None]], benchmark: str = "CUB") -> pd.DataFrame:
    """Variant → score by seed; None for a cell that failed."""
    rows = [
        {
            "benchmark": benchmark,
            "variant": variant,
            "seed": seed,
            "state": "failed" if score is None else "cached",
            "reason": "out of memory" if score is None else "",
            "run_id": "" if score is None else f"{benchmark}-{variant}-{seed}",
            "experiment_id": "",
            "gzsl_h": math.nan if score is None else score,
        }
        for variant, row in scores.items()
        for seed, score in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *FIGURES])


def compared(*cells: pd.DataFrame) -> Comparison:
    return compare(pd.concat(cells), "base", "gzsl_h", "final")


def entry_of(comparison: Comparison, variant: str, benchmark: str = "CUB") -> pd.Series:
    return comparison.entries.set_index(["variant", "benchmark"]).loc[(variant, benchmark)]


BASE: list[float | None] = [0.40, 0.43, 0.41, 0.44]
CUB = cells_of({"base": BASE, "more": [0.52, 0.56, 0.53, 0.555], "less": [0.30, 0.34, 0.31, 0.335]})
SUN = cells_of(
    {"base": [0.6, 0.7, 0.65, 0.62], "more": [0.61, 0.68, 0.66, 0.63], "less": [0.3, None, None, 0.31]}, "SUN"
)

scores = st.none() | st.floats(0, 1).map(lambda value: round(value, 3))


@st.composite
def grids(draw: st.DrawFn) -> pd.DataFrame:
    seeds = draw(st.integers(1, 6))
    rows = st.lists(scores, min_size=seeds, max_size=seeds)
    return pd.concat(
        [cells_of({variant: draw(rows) for variant in ("base", "a", "b")}, name) for name in ("CUB", "SUN")]
    )


def test_means_differences_and_corrected_p_are_those_of_pandas_and_scipy() -> None:
    found = compared(CUB, SUN)
    frame = pd.concat([CUB, SUN])
    means = frame.groupby(["variant", "benchmark"])["gzsl_h"].agg(["mean", "std", "count"])
    wide = frame.pivot(index=["benchmark", "seed"], columns="variant", values="gzsl_h")
    raw = {}
    for entry in found.entries.itertuples():
        expected = means.loc[(entry.variant, entry.benchmark)]
        assert (entry.mean, entry.std, entry.n) == pytest.approx(tuple(expected))
        if entry.variant == "base":
            assert entry.pairs == 0 and math.isnan(entry.difference) and math.isnan(entry.p_holm)
            continue
        both = wide.loc[entry.benchmark][[entry.variant, "base"]].dropna()
        differences = (both[entry.variant] - both["base"]).tolist()
        assert (entry.pairs, entry.difference) == (len(both), pytest.approx(sum(differences) / len(both)))
        assert (entry.low, entry.high) == pytest.approx(bootstrap_interval(differences))
        raw[entry.p_holm] = stats.ttest_rel(both[entry.variant], both["base"]).pvalue
        assert entry.p == pytest.approx(raw[entry.p_holm])
    largest = 0.0
    for rank, (corrected, p) in enumerate(sorted(raw.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (4 - rank) * p))
        assert corrected == pytest.approx(largest)


def test_verdicts_and_the_order_of_entries() -> None:
    found = compared(CUB, SUN)
    assert (found.variants, found.benchmarks) == (["base", "more", "less"], ["CUB", "SUN"])
    assert found.entries[["variant", "benchmark", "verdict"]].to_numpy().tolist() == [
        ["base", "CUB", "base"],
        ["base", "SUN", "base"],
        ["more", "CUB", "better"],
        ["more", "SUN", "no difference shown"],
        ["less", "CUB", "worse"],
        ["less", "SUN", "insufficient seeds"],
    ]
    less = entry_of(found, "less", "SUN")
    assert (less["run_ids"], less["states"]) == ("SUN-less-0 SUN-less-3", "2 failed")
    assert less["reasons"] == "2 failed (seeds 1, 2: out of memory)"


def test_without_a_score_or_a_common_seed_nothing_is_compared() -> None:
    found = compared(cells_of({"base": [None, 0.4, None], "other": [0.5, None, 0.6], "gone": [None, None, None]}))
    other, gone = entry_of(found, "other"), entry_of(found, "gone")
    assert (other["n"], other["pairs"], other["verdict"]) == (2, 0, "insufficient seeds")
    assert (gone["n"], gone["pairs"], gone["verdict"]) == (0, 0, "no score")
    assert other[["difference", "p_holm"]].isna().all()


def test_a_variant_without_cells_on_a_benchmark_has_an_entry_there() -> None:
    entry = entry_of(compared(cells_of({"base": BASE}), cells_of({"base": BASE, "new": BASE}, "SUN")), "new")
    assert (entry["n"], entry["verdict"], entry["reasons"]) == (0, "no score", "no cell of the grid")


def test_one_pair_has_a_difference_without_p() -> None:
    entry = entry_of(compared(cells_of({"base": [0.25], "other": [0.5]})), "other")
    assert (entry["difference"], entry["pairs"], entry["verdict"]) == (0.25, 1, "insufficient seeds")
    assert math.isnan(entry["p_holm"])


@pytest.mark.parametrize(("by", "verdict"), [(0.25, "better"), (-0.25, "worse"), (0.0, "no difference shown")])
def test_the_same_difference_with_every_seed(by: float, verdict: str) -> None:
    base = [0.25, 0.5, 0.375]
    entry = entry_of(compared(cells_of({"base": [*base], "other": [score + by for score in base]})), "other")
    assert (entry["verdict"], entry["p_holm"]) == (verdict, 0.0 if by else 1.0)


def test_correction_withdraws_what_one_test_alone_would_claim() -> None:
    claimed: dict[str, list[float | None]] = {"base": [0.40, 0.43, 0.41], "other": [0.43, 0.45, 0.435]}
    assert entry_of(compared(cells_of(claimed)), "other")["verdict"] == "better"
    many = claimed | {f"same{index}": [0.41, 0.425, 0.412] for index in range(4)}
    entry = entry_of(compared(cells_of(many)), "other")
    assert entry["low"] > 0 and entry["verdict"] == "no difference shown"


def test_a_small_p_is_no_claim_where_the_interval_contains_zero() -> None:
    gains = [0.01] * 20 + [-0.035] * 2
    entry = entry_of(compared(cells_of({"base": [0.5] * 22, "other": [0.5 + gain for gain in gains]})), "other")
    assert entry["low"] < 0 and entry["p_holm"] < 0.05
    assert entry["verdict"] == "no difference shown"


def test_stale_scores_count_and_scores_that_are_not_finite_do_not() -> None:
    cells = cells_of({"base": BASE, "other": [0.5, 0.54, 0.52, math.inf]})
    entry = entry_of(compared(cells.assign(state="stale", reason="other code")), "other")
    assert (entry["n"], entry["verdict"]) == (3, "better")
    assert entry["reasons"] == "4 stale (seeds 0, 1, 2, 3: other code)"
    assert entry_of(compared(cells), "other")["states"] == "1 without score"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no cell is of the base 'full': the variants are base, more, less"):
        compare(CUB, "full", "gzsl_h", "final")
    with pytest.raises(ValueError, match="no cell is of the base"):
        compare(CUB[:0], "base", "gzsl_h", "final")
    with pytest.raises(ValueError, match="there is no metric 'accuracy'"):
        compare(CUB, "base", "accuracy", "final")
    with pytest.raises(ValueError, match="two cells are of base on CUB with seed 0"):
        compared(CUB, CUB[:1])


@settings(max_examples=25)
@given(grids(), st.randoms())
def test_claims_need_seeds_p_and_interval_and_the_order_of_cells_changes_nothing(
    cells: pd.DataFrame, random: Random
) -> None:
    entries = compared(cells).entries
    claims = entries[entries["verdict"].isin(["better", "worse"])]
    assert (claims["pairs"] >= 3).all() and (claims["p_holm"] < 0.05).all()
    assert ((claims["low"] > 0) == (claims["verdict"] == "better")).all()
    assert ((claims["high"] < 0) == (claims["verdict"] == "worse")).all()
    shuffled = cells.sort_values("seed", key=lambda seeds: seeds.map(random.sample(range(6), 6).index))
    by_name = ["variant", "benchmark"]
    after = compared(shuffled).entries.sort_values(by_name, ignore_index=True)
    pd.testing.assert_frame_equal(after, entries.sort_values(by_name, ignore_index=True))
