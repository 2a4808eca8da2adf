"""Comparisons and their paired statistics, against scipy and pandas, and the conditions for calling a variant better."""

import itertools
import json
import math
import warnings
from dataclasses import astuple
from random import Random
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.analysis.comparison import CELL_COLUMNS, Comparison, cells_of_runs, compare
from pipeline.analysis.paired import PairedDifference, bootstrapped_difference, holm, paired_difference, summarise
from pipeline.analysis.runs import FIGURES

OOM = "out of memory"


def cells_of(scores: dict[str, list[float | None]], benchmark: str = "CUB") -> pd.DataFrame:
    """Variant → score by seed; None for a cell that failed."""
    rows = [(variant, seed, score) for variant, row in scores.items() for seed, score in enumerate(row)]
    cells = pd.DataFrame(rows, columns=["variant", "seed", "gzsl_h"]).astype({"gzsl_h": float})
    failed = cells["gzsl_h"].isna()
    names = benchmark + "-" + cells["variant"] + "-" + cells["seed"].astype(str)
    cells = cells.assign(benchmark=benchmark, run_id=names.mask(failed, ""), experiment_id="")
    cells = cells.assign(state=failed.map({True: "failed", False: "cached"}), reason=failed.map({True: OOM, False: ""}))
    return cells.reindex(columns=[*CELL_COLUMNS, *FIGURES])


def compared(*cells: pd.DataFrame) -> Comparison:
    return compare(pd.concat(cells), "base", "gzsl_h", "final")


def entry_of(comparison: Comparison, variant: str, benchmark: str = "CUB") -> pd.Series:
    return comparison.entries.set_index(["variant", "benchmark"]).loc[(variant, benchmark)]


BASE: list[float | None] = [0.40, 0.43, 0.41, 0.44]
CUB = cells_of({"base": BASE, "more": [0.52, 0.56, 0.53, 0.555], "less": [0.30, 0.34, 0.31, 0.335]})
SUN = cells_of(
    {"base": [0.6, 0.7, 0.65, 0.62], "more": [0.61, 0.68, 0.66, 0.63], "less": [0.3, None, None, 0.31]}, "SUN"
)


def test_entries_have_the_paired_statistics_of_the_common_seeds() -> None:
    found = compared(CUB, SUN)
    wide = pd.concat([CUB, SUN]).pivot(index=["benchmark", "seed"], columns="variant", values="gzsl_h")
    for entry in found.entries.itertuples():
        scores = wide.loc[entry.benchmark][entry.variant].dropna()
        assert (entry.mean, entry.std, entry.n) == pytest.approx((scores.mean(), scores.std(), len(scores)))
        if entry.variant == "base":
            assert entry.pairs == 0 and math.isnan(entry.difference) and math.isnan(entry.p_holm)
            continue
        both = wide.loc[entry.benchmark][[entry.variant, "base"]].dropna()
        wanted = bootstrapped_difference(both[entry.variant].tolist(), both["base"].tolist())
        assert (entry.difference, entry.low, entry.high, entry.p, entry.pairs) == astuple(wanted)
    tested = found.entries.dropna(subset="p")
    assert tested["p_holm"].tolist() == list(holm(tested["p"].tolist()))


def test_verdicts_and_the_order_of_entries() -> None:
    found = compared(CUB, SUN)
    assert (found.variants, found.benchmarks) == (["base", "more", "less"], ["CUB", "SUN"])
    verdicts = ["base", "base", "better", "no difference shown", "worse", "insufficient seeds"]
    assert list(found.entries["verdict"]) == verdicts
    places = [(variant, benchmark) for variant in found.variants for benchmark in found.benchmarks]
    assert list(zip(found.entries["variant"], found.entries["benchmark"], strict=True)) == places
    less = entry_of(found, "less", "SUN")
    assert (less["run_ids"], less["states"]) == ("SUN-less-0 SUN-less-3", "2 failed")
    assert less["reasons"] == "2 failed (seeds 1, 2: out of memory)"


def test_without_a_score_or_a_common_seed_nothing_is_compared() -> None:
    cells = {"base": [None, 0.4, None], "other": [0.5, None, 0.6], "gone": [None] * 3, "one": [None, 0.65, None]}
    found = compared(cells_of(cells), cells_of({"base": [*BASE], "new": [*BASE]}, "SUN"))
    other, gone, one, new = (entry_of(found, variant) for variant in ("other", "gone", "one", "new"))
    assert (other["n"], other["pairs"], other["verdict"]) == (2, 0, "insufficient seeds")
    assert (gone["n"], gone["pairs"], gone["verdict"]) == (0, 0, "no score")
    assert other[["difference", "p_holm"]].isna().all()
    assert (one["difference"], one["pairs"], one["verdict"]) == (0.25, 1, "insufficient seeds")
    assert math.isnan(one["p_holm"])
    assert (new["n"], new["verdict"], new["reasons"]) == (0, "no score", "no cell of the grid")


def test_a_claim_needs_the_corrected_p_and_the_interval() -> None:
    claimed: dict[str, list[float | None]] = {"base": [0.40, 0.43, 0.41], "other": [0.43, 0.45, 0.435]}
    assert entry_of(compared(cells_of(claimed)), "other")["verdict"] == "better"
    many = claimed | {f"same{index}": [0.41, 0.425, 0.412] for index in range(4)}
    entry = entry_of(compared(cells_of(many)), "other")
    assert entry["low"] > 0 and entry["verdict"] == "no difference shown"
    # The other way round: a small p, and an interval that contains zero.
    gains = [0.01] * 20 + [-0.035] * 2
    entry = entry_of(compared(cells_of({"base": [0.5] * 22, "other": [0.5 + gain for gain in gains]})), "other")
    assert entry["low"] < 0 and entry["p_holm"] < 0.05 and entry["verdict"] == "no difference shown"


def test_stale_scores_count_and_scores_that_are_not_finite_do_not() -> None:
    cells = cells_of({"base": BASE, "other": [0.5, 0.54, 0.52, math.inf]})
    entry = entry_of(compared(cells.assign(state="stale", reason="other code")), "other")
    assert (entry["n"], entry["verdict"]) == (3, "better")
    assert entry["reasons"] == "4 stale (seeds 0, 1, 2, 3: other code)"
    assert entry_of(compared(cells), "other")["states"] == "1 without score"


fractions = st.floats(0, 1).map(lambda value: round(value, 4))
pairs = st.lists(st.tuples(fractions, fractions), min_size=1, max_size=12)


@given(pairs)
def test_mean_interval_p_and_verdict_are_those_of_students_t(found: list[tuple[float, float]]) -> None:
    first, second = zip(*found, strict=True)
    differences, summary = pd.Series(first) - pd.Series(second), summarise(first)
    assert (summary.mean, summary.n) == (pytest.approx(pd.Series(first).mean()), len(found))
    assert summary.std == (None if len(found) == 1 else pytest.approx(pd.Series(first).std(), abs=1e-12))
    ours, back = paired_difference(first, second), paired_difference(second, first)
    assert ours.n == len(found) and ours.mean == pytest.approx(differences.mean(), abs=1e-12)
    turned = {"better": "worse", "worse": "better"}
    assert back.verdict == turned.get(ours.verdict, ours.verdict)
    if ours.n < 3 or ours.low is None or ours.high is None:
        assert ours.verdict == "insufficient seeds"
    else:
        assert ours.verdict == ("better" if ours.low > 0 else "worse" if ours.high < 0 else "no difference shown")
    if ours.n > 1 and differences.std() >= 1e-9:
        half = stats.t.ppf(0.975, len(found) - 1) * differences.std(ddof=1) / math.sqrt(len(found))
        interval = (differences.mean() - half, differences.mean() + half)
        assert (ours.low, ours.high) == pytest.approx(interval, abs=1e-9)
        assert ours.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)


@pytest.mark.parametrize("function", [paired_difference, bootstrapped_difference])
def test_one_pair_has_a_difference_alone_and_unequal_or_empty_lists_are_refused(function) -> None:
    assert function([0.5], [0.25]) == PairedDifference(0.25, None, None, None, 1)
    for first, second in (([0.1, 0.2], [0.1]), ([], [])):
        with pytest.raises(ValueError):
            function(first, second)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("by", "verdict", "p"), [(0.25, "better", 0.0), (-0.25, "worse", 0.0), (0, None, 1.0)])
def test_a_constant_difference_is_an_interval_without_width(by: float, verdict: str | None, p: float) -> None:
    base = [0.25, 0.5, 0.375]
    for function in (paired_difference, bootstrapped_difference):
        difference = function([score + by for score in base], base)
        assert (difference.low, difference.mean, difference.high, difference.p) == (by, by, by, p)
        assert difference.verdict == (verdict or "no difference shown")
    rounded = paired_difference([score + 0.1 for score in (0.1, 0.2, 0.3, 0.7)], [0.1, 0.2, 0.3, 0.7])
    json.dumps([rounded.low, rounded.high, rounded.p], allow_nan=False)


@mock.patch("pipeline.analysis.paired.RESAMPLES", 9999)
def test_the_bootstrap_is_the_percentile_bootstrap_of_the_mean_in_any_order() -> None:
    differences = np.random.default_rng(1).normal(0.02, 0.03, 60)
    drawn = np.random.default_rng(2).choice(differences, (20_000, 60)).mean(axis=1)
    found = bootstrapped_difference(differences.tolist(), [0.0] * 60)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=4e-4)
    first, second = [0.5, 0.56, 0.53, 0.55], [0.4, 0.47, 0.45, 0.41]
    plain, ours = paired_difference(first, second), bootstrapped_difference(first, second)
    assert (ours.mean, ours.p, ours.n) == (plain.mean, plain.p, plain.n)
    for pairs in itertools.permutations(zip(first, second, strict=True)):
        shuffled = bootstrapped_difference(*zip(*pairs, strict=True))
        assert (shuffled.low, shuffled.high) == (ours.low, ours.high)


@given(st.lists(st.floats(0, 1), max_size=6), st.randoms())
def test_holm_is_the_closed_test_of_bonferroni_in_any_order(raw: list[float], random: Random) -> None:
    subsets = [one for size in range(1, len(raw) + 1) for one in itertools.combinations(raw, size)]
    assert holm(raw) == pytest.approx([max(min(1.0, len(one) * min(one)) for one in subsets if p in one) for p in raw])
    order = random.sample(range(len(raw)), len(raw))
    assert holm([raw[index] for index in order]) == tuple(holm(raw)[index] for index in order)


def test_a_table_that_came_column_by_column_is_read_without_a_warning() -> None:
    runs = CUB.drop(columns=["state", "reason"])
    with warnings.catch_warnings(action="ignore"):
        for number in range(120):
            runs[f"val/metric-{number}"] = 0.0
    with warnings.catch_warnings(action="error"):
        cells = cells_of_runs(runs, "final")
    assert len(cells) == len(CUB)
