"""From a trial's figures to one number: cases worked by hand."""

from __future__ import annotations

import pytest

from pipeline.search.objective import final_ranks, mean_normalised, mean_rank


def test_scores_are_brought_to_one_scale_by_the_bases_own() -> None:
    assert mean_normalised([0.6, 0.2], [0.5, 0.4]) == pytest.approx((1.2 + 0.5) / 2)
    assert mean_normalised([0.6, 0.2], [1, 1]) == pytest.approx(0.4)


def test_runs_that_have_not_begun_do_not_count() -> None:
    assert mean_normalised([0.6], [0.5, 0.4]) == pytest.approx(1.2)
    assert mean_rank([0.6], [[0.5, 0.9], [0.7]]) == 0.5


def test_a_rank_is_the_share_of_the_others_that_score_less_a_tie_counting_half() -> None:
    others = [[0.1, 0.9], [0.5, 0.9], [0.7, 0.1]]
    assert mean_rank([0.5, 0.95], others) == pytest.approx(((1 + 0.5) / 3 + 1) / 2)


def test_others_that_lack_a_run_are_passed_over_there() -> None:
    assert mean_rank([0.5, 0.5], [[0.1], [0.1, 0.9]]) == pytest.approx((1 + 0) / 2)


def test_alone_a_trial_ranks_in_the_middle() -> None:
    assert mean_rank([0.9, 0.1], []) == 0.5
    assert final_ranks({7: [0.9, 0.1]}) == {7: 0.5}
    assert final_ranks({}) == {}
