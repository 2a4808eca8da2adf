"""Paired differences against scipy and pandas, and the verdicts that follow from them."""

from __future__ import annotations

import itertools
import json
import math
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
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
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=12)


@settings(max_examples=50)
@given(pairs)
def test_mean_interval_p_and_verdict_are_those_of_students_t_on_the_differences(
    found: list[tuple[float, float]],
) -> None:
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


def test_the_bootstrap_is_the_percentile_bootstrap_of_the_mean_in_any_order() -> None:
    differences = np.random.default_rng(1).normal(0.02, 0.03, 60)
    drawn = np.random.default_rng(2).choice(differences, (20_000, 60)).mean(axis=1)
    for level in (0.8, 0.95):
        interval = bootstrap_interval(differences.tolist(), level)
        assert interval == pytest.approx(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]), abs=4e-4)
    first, second = [0.5, 0.56, 0.53, 0.55], [0.4, 0.47, 0.45, 0.41]
    plain, ours = paired_difference(first, second), bootstrapped_difference(first, second)
    assert (ours.mean, ours.p, ours.n) == (plain.mean, plain.p, plain.n)
    few = [a - b for a, b in zip(first, second, strict=True)]
    assert {bootstrap_interval(order) for order in itertools.permutations(few)} == {(ours.low, ours.high)}


def test_holm_by_hand() -> None:
    # 4·0.005, 3·0.01, 2·0.03, then 0.04 may not fall below the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.7]) == (1.0, 1.0, 1.0)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=6), st.randoms())
def test_holm_is_the_closed_test_of_bonferroni_in_any_order(raw: list[float], random: Random) -> None:
    subsets = [one for size in range(1, len(raw) + 1) for one in itertools.combinations(raw, size)]
    assert holm(raw) == pytest.approx([max(min(1.0, len(one) * min(one)) for one in subsets if p in one) for p in raw])
    order = random.sample(range(len(raw)), len(raw))
    assert holm([raw[index] for index in order]) == tuple(holm(raw)[index] for index in order)
