"""What must hold of normalised scores and of ranks, whatever the figures."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.objective import final_ranks, mean_normalised, mean_rank

runs = st.integers(1, 4)
score = st.integers(0, 8).map(lambda eighths: eighths / 8)
"""Coarse, so that ties are common."""


@st.composite
def tables(draw: st.DrawFn) -> list[list[float]]:
    """Scores of some trials on the same runs."""
    count = draw(runs)
    return draw(st.lists(st.lists(score, min_size=count, max_size=count), min_size=1, max_size=6))


@given(tables(), st.floats(0.1, 10))
def test_normalising_by_one_number_divides_the_mean(table: list[list[float]], reference: float) -> None:
    own = table[0]
    plain = mean_normalised(own, [1.0] * len(own))
    assert mean_normalised(own, [reference] * len(own)) == pytest.approx(plain / reference)
    assert mean_normalised(own, [max(one, 0.01) for one in own]) <= 1 + 1e-12


@given(tables())
def test_ranks_lie_between_zero_and_one_and_average_to_a_half(table: list[list[float]]) -> None:
    ranks = final_ranks(dict(enumerate(table)))
    assert ranks.keys() == set(range(len(table)))
    assert all(0 <= rank <= 1 for rank in ranks.values())
    assert math.fsum(ranks.values()) / len(ranks) == pytest.approx(0.5)


@given(tables())
def test_ranks_ask_for_the_order_of_scores_alone(table: list[list[float]]) -> None:
    """Each run may have a scale of its own: that is what ranks are for."""
    rescaled = [[math.exp(run + 3 * one) - run for run, one in enumerate(own)] for own in table]
    assert final_ranks(dict(enumerate(rescaled))) == final_ranks(dict(enumerate(table)))


@given(tables(), st.data())
def test_a_better_score_never_ranks_lower(table: list[list[float]], data: st.DataObject) -> None:
    own, *others = table
    run = data.draw(st.integers(0, len(own) - 1))
    better = [one + data.draw(score) * (position == run) for position, one in enumerate(own)]
    assert mean_rank(better, others) >= mean_rank(own, others)


@given(tables(), st.randoms())
def test_the_order_of_the_others_does_not_matter(table: list[list[float]], generator: random.Random) -> None:
    own, *others = table
    shuffled = generator.sample(others, len(others))
    assert mean_rank(own, shuffled) == mean_rank(own, others)
    assert mean_rank(own, [own] * 3) == 0.5


@given(tables())
def test_the_best_everywhere_has_the_best_rank(table: list[list[float]]) -> None:
    best = [max(column) + 1 for column in zip(*table, strict=True)]
    ranks = final_ranks(dict(enumerate([best, *table])))
    assert ranks[0] == 1 and max(ranks, key=lambda number: ranks[number]) == 0
