"""Properties of ranks, and cases worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.director import final_ranks, mean_rank

score = st.integers(0, 8).map(lambda eighths: eighths / 8)
"""Coarse, so that ties are common."""


@st.composite
def tables(draw: st.DrawFn) -> list[list[float]]:
    """Scores of some trials on the same runs."""
    count = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(score, min_size=count, max_size=count), min_size=1, max_size=6))


def test_cases_worked_by_hand() -> None:
    others = [[0.1, 0.9], [0.5, 0.9], [0.7, 0.1]]
    assert mean_rank([0.5, 0.95], others) == pytest.approx(((1 + 0.5) / 3 + 1) / 2), "a tie counts half"
    assert mean_rank([0.5, 0.5], [[0.1], [0.1, 0.9]]) == pytest.approx((1 + 0) / 2), "the first one lacks a run"
    assert mean_rank([0.9, 0.1], []) == 0.5
    assert final_ranks({7: [0.9, 0.1]}) == {7: 0.5} and final_ranks({}) == {}


@given(tables(), st.data())
def test_ranks_depend_on_the_order_of_scores_alone(table: list[list[float]], data: st.DataObject) -> None:
    ranks = final_ranks(dict(enumerate(table)))
    assert all(0 <= rank <= 1 for rank in ranks.values())
    assert math.fsum(ranks.values()) / len(ranks) == pytest.approx(0.5)
    # Each run may have a scale of its own.
    rescaled = [[math.exp(run + 3 * one) - run for run, one in enumerate(own)] for own in table]
    assert final_ranks(dict(enumerate(rescaled))) == ranks
    own, *others = table
    run = data.draw(st.integers(0, len(own) - 1))
    better = [one + data.draw(score) * (position == run) for position, one in enumerate(own)]
    assert mean_rank(better, others) >= mean_rank(own, others)
    assert mean_rank(own, data.draw(st.permutations(others))) == mean_rank(own, others)
