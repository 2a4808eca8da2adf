"""Paired differences against scipy and pandas, and what may be said of them."""

from __future__ import annotations

import itertools
import json
import math
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.analysis.paired import (
    PairedDifference,
    bootstrap_interval,
    bootstrapped_difference,
    holm,
    paired_difference,
    summarise,
)

scores = st.floats(0, 1).map(lambda value: round(value, 4))


def pairs(least: int):
    return st.lists(st.tuples(scores, scores), min_size=least, max_size=12)


@given(pairs(2))
def test_mean_interval_and_p_are_those_of_students_t_on_the_differences(found: list[tuple[float, float]]) -> None:
    first, second = zip(*found, strict=True)
    differences = pd.Series(first) - pd.Series(second)
    ours = paired_difference(first, second)
    assert ours.n == len(found) and ours.mean == pytest.approx(differences.mean(), abs=1e-12)
    if differences.std() < 1e-9:
        return
    half = stats.t.ppf(0.975, len(found) - 1) * differences.std(ddof=1) / math.sqrt(len(found))
    assert ours.low == pytest.approx(differences.mean() - half, abs=1e-9)
    assert ours.high == pytest.approx(differences.mean() + half, abs=1e-9)
    assert ours.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)


@given(pairs(1))
def test_the_other_way_round_is_the_same_with_the_sign_turned(found: list[tuple[float, float]]) -> None:
    first, second = zip(*found, strict=True)
    there, back = paired_difference(first, second), paired_difference(second, first)
    turned = {"better": "worse", "worse": "better"}
    assert back.verdict == turned.get(there.verdict, there.verdict)
    assert back.mean == pytest.approx(-there.mean, abs=1e-12)


@given(pairs(1))
def test_the_verdict_follows_from_the_interval_and_the_number_of_pairs(found: list[tuple[float, float]]) -> None:
    difference = paired_difference(*zip(*found, strict=True))
    if difference.n < 3:
        assert difference.verdict == "insufficient seeds"
        return
    assert difference.low is not None and difference.high is not None
    crosses = difference.low <= 0 <= difference.high
    assert (difference.verdict == "no difference shown") == crosses
    assert (difference.verdict == "better") == (difference.low > 0)


def test_two_pairs_have_an_interval_but_no_verdict() -> None:
    difference = paired_difference([0.5, 0.6], [0.1, 0.2001])
    assert difference.low is not None and difference.low > 0
    assert difference.verdict == "insufficient seeds"


def test_one_pair_has_a_difference_alone() -> None:
    assert paired_difference([0.5], [0.25]) == PairedDifference(0.25, None, None, None, 1)
    assert paired_difference([0.5], [0.25]).verdict == "insufficient seeds"


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.50, 0.52, 0.51], [0.40, 0.43, 0.41], "better"),
        ([0.40, 0.43, 0.41], [0.50, 0.52, 0.51], "worse"),
        ([0.50, 0.40, 0.45], [0.45, 0.44, 0.43], "no difference shown"),
        # The first is better with every seed, but by so different amounts that its interval crosses zero.
        ([0.41, 0.60, 0.41], [0.40, 0.40, 0.40], "no difference shown"),
    ],
)
def test_verdicts(first: list[float], second: list[float], verdict: str) -> None:
    assert paired_difference(first, second).verdict == verdict


@pytest.mark.parametrize(("by", "verdict", "p"), [(0.25, "better", 0.0), (-0.25, "worse", 0.0), (0, None, 1.0)])
def test_a_constant_difference_is_an_interval_without_width(by: float, verdict: str | None, p: float) -> None:
    base = [0.25, 0.5, 0.375]
    difference = paired_difference([score + by for score in base], base)
    assert (difference.low, difference.mean, difference.high, difference.p) == (by, by, by, p)
    assert difference.verdict == (verdict or "no difference shown")


def test_differences_that_only_rounding_tells_apart_are_finite_and_fit_json() -> None:
    base = [0.1, 0.2, 0.3, 0.7]
    difference = paired_difference([score + 0.1 for score in base], base)
    assert difference.verdict == "better"
    json.dumps([difference.low, difference.high, difference.p], allow_nan=False)


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    seeds = np.array([0.2, 0.5, 0.8, 0.35])
    gain = np.array([0.010, 0.012, 0.011, 0.009])
    first, second = (seeds + gain).tolist(), seeds.tolist()
    assert paired_difference(first, second).verdict == "better"
    assert stats.ttest_ind(first, second).pvalue > 0.9


def test_unequal_lists_and_none_at_all_are_refused() -> None:
    with pytest.raises(ValueError):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError):
        paired_difference([], [])
    with pytest.raises(ValueError):
        summarise([])


@given(st.lists(scores, min_size=1, max_size=12))
def test_a_summary_is_mean_sample_deviation_and_number(values: list[float]) -> None:
    summary, series = summarise(values), pd.Series(values)
    assert summary.n == len(values) and summary.mean == pytest.approx(series.mean())
    if len(values) == 1:
        assert summary.std is None
    else:
        assert summary.std == pytest.approx(series.std(), abs=1e-12)


@given(pairs(2))
def test_a_bootstrapped_difference_has_the_bootstraps_interval_and_the_t_tests_p(
    found: list[tuple[float, float]],
) -> None:
    first, second = zip(*found, strict=True)
    plain, ours = paired_difference(first, second), bootstrapped_difference(first, second)
    assert (ours.mean, ours.p, ours.n) == (plain.mean, plain.p, plain.n)
    differences = [a - b for a, b in found]
    assert ours.low is not None and ours.high is not None
    assert (ours.low, ours.high) == bootstrap_interval(differences)
    assert min(differences) - 1e-12 <= ours.low <= ours.mean + 1e-12
    assert ours.mean - 1e-12 <= ours.high <= max(differences) + 1e-12


def test_the_bootstrap_is_the_percentile_bootstrap_of_the_mean() -> None:
    differences = np.random.default_rng(1).normal(0.02, 0.03, 60)
    drawn = np.random.default_rng(2).choice(differences, (20_000, 60)).mean(axis=1)
    for level in (0.8, 0.95):
        interval = bootstrap_interval(differences.tolist(), level)
        assert interval == pytest.approx(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]), abs=4e-4)


def test_the_bootstrap_is_the_same_at_every_call_and_in_every_order() -> None:
    differences = [0.013, -0.002, 0.021, 0.004, 0.009]
    assert len({bootstrap_interval(order) for order in itertools.permutations(differences)}) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_differences_have_a_bootstrap_interval_without_width(n: int) -> None:
    mean = paired_difference([0.1] * n, [0.0] * n).mean
    assert bootstrap_interval([0.1] * n) == (mean, mean)


def test_fewer_than_two_differences_have_no_bootstrap_interval() -> None:
    assert bootstrap_interval([]) is None and bootstrap_interval([0.1]) is None
    assert bootstrapped_difference([0.5], [0.25]) == PairedDifference(0.25, None, None, None, 1)
    with pytest.raises(ValueError):
        bootstrapped_difference([], [])


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        # By hand: 4·0.005, 3·0.01, 2·0.03, then 0.04 may not fall below the 0.06 before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04], [0.04]),
        ([0.5, 0.6, 0.7], [1.0, 1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.0, 0.03], [0.0, 0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(raw: list[float], corrected: list[float]) -> None:
    assert holm(raw) == pytest.approx(corrected)


p_values = st.lists(st.floats(0, 1), max_size=8)


@given(p_values)
def test_holm_is_the_closed_test_of_bonferroni(raw: list[float]) -> None:
    subsets = [
        [raw[index] for index in chosen]
        for size in range(1, len(raw) + 1)
        for chosen in itertools.combinations(range(len(raw)), size)
    ]
    rejected_at = [max(min(1.0, len(one) * min(one)) for one in subsets if p in one) for p in raw]
    assert holm(raw) == pytest.approx(rejected_at)


@given(p_values, st.randoms())
def test_holm_never_helps_keeps_the_order_and_goes_with_any_order(raw: list[float], random: Random) -> None:
    corrected = holm(raw)
    assert all(p <= after <= 1 for p, after in zip(raw, corrected, strict=True))
    in_order = [after for _, after in sorted(zip(raw, corrected, strict=True))]
    assert in_order == sorted(corrected)
    order = random.sample(range(len(raw)), len(raw))
    assert holm([raw[index] for index in order]) == tuple(corrected[index] for index in order)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, p])
