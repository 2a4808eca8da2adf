"""The exact seen–unseen curve against brute force, ties included, and ESZSL against its closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.eszsl import eszsl_scores, prepare_eszsl
from mgmrn.metrics import (
    SeenUnseenCurve,
    calibrated_predictions,
    harmonic_mean,
    mean_class_accuracy,
    per_class_accuracy,
    seen_unseen_curve,
    zsl_result,
)

SEEN = np.array([True, False, True, False, True])


@st.composite
def problems(draw):
    """Scores on a coarse grid, so that ties within and between the groups are common."""
    seen_count, unseen_count = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    cells = draw(st.binary(min_size=5 * (seen_count + unseen_count), max_size=5 * (seen_count + unseen_count)))
    scores = (np.frombuffer(cells, dtype=np.uint8) % 7).astype(np.float32).reshape(-1, 5) - 3
    seen_labels = np.array(draw(st.lists(st.sampled_from([0, 2, 4]), min_size=seen_count, max_size=seen_count)))
    unseen_labels = np.array(draw(st.lists(st.sampled_from([1, 3]), min_size=unseen_count, max_size=unseen_count)))
    return scores[:seen_count], seen_labels, scores[seen_count:], unseen_labels


def brute_force(problem, gamma: float) -> tuple[float, float]:
    """U and S at one γ, by subtraction and argmax, class by class."""
    seen_scores, seen_labels, unseen_scores, unseen_labels = problem

    def accuracy(scores, labels):
        predictions = (scores.astype(np.float64) - gamma * SEEN).argmax(axis=1)
        return float(np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)]))

    return accuracy(unseen_scores, unseen_labels), accuracy(seen_scores, seen_labels)


@given(problems())
def test_curve_equals_brute_force_between_all_thresholds(problem):
    curve = seen_unseen_curve(*problem, SEEN)
    assert np.all(np.diff(curve.gammas) > 0)
    # Thresholds are whole numbers here, so every half-integer lies strictly between two.
    gammas = np.arange(-7.5, 8.0)
    expected = np.array([brute_force(problem, gamma) for gamma in gammas])
    found = np.array([curve.at(gamma)[:2] for gamma in gammas])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    best = harmonic_mean(expected[:, 0], expected[:, 1]).max()
    assert curve.best_harmonic == pytest.approx(best, abs=1e-12)
    area = np.sum(np.diff(expected[:, 0]) * (expected[1:, 1] + expected[:-1, 1])) / 2
    assert curve.ausuc == pytest.approx(area, abs=1e-12)
    assert curve.at(curve.best_gamma)[2] == pytest.approx(curve.best_harmonic, abs=1e-12)


@given(problems(), st.integers(-7, 7))
def test_at_a_tie_curve_and_predictions_agree(problem, gamma):
    seen_scores, seen_labels, unseen_scores, unseen_labels = problem
    unseen, seen, _ = seen_unseen_curve(*problem, SEEN).at(float(gamma))
    u = mean_class_accuracy(calibrated_predictions(unseen_scores, SEEN, float(gamma)), unseen_labels)
    s = mean_class_accuracy(calibrated_predictions(seen_scores, SEEN, float(gamma)), seen_labels)
    assert (unseen, seen) == pytest.approx((u, s), abs=1e-12)


def test_result_of_a_case_worked_by_hand():
    # Two seen images (classes 0, 2), two unseen (class 1): thresholds 1, 3 for seen, −1, 2 for unseen.
    seen_scores = np.array([[5, 4, 0, 0, 0], [0, 0, 5, 2, 0]], dtype=np.float32)
    unseen_scores = np.array([[1, 2, 0, 0, 0], [4, 2, 0, 1, 0]], dtype=np.float32)
    result = zsl_result(seen_scores, np.array([0, 2]), unseen_scores, np.array([1, 1]), SEEN, gamma=0.0)
    assert (result.zsl_t1, result.gzsl_u, result.gzsl_s) == (1.0, 0.5, 1.0)
    assert result.gzsl_h == pytest.approx(2 / 3)
    assert result.gzsl_h_oracle == pytest.approx(2 / 3)
    # Points (U, S): (0, 1), (.5, 1), (.5, .5), (1, .5), (1, 0).
    assert result.ausuc == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_zeros_and_missing_images_give_zero_not_nan():
    np.testing.assert_array_equal(harmonic_mean(np.array([0.0, 0.5]), np.array([0.0, 0.5])), [0.0, 0.5])
    accuracy = per_class_accuracy(np.zeros(5, dtype=int), np.array([0, 0, 0, 0, 1]), 3)
    np.testing.assert_array_equal(accuracy, [1.0, 0.0, np.nan])
    none, labels = np.zeros((0, 5), dtype=np.float32), np.zeros(0, dtype=np.int64)
    result = zsl_result(none, labels, np.ones((2, 5), dtype=np.float32), np.array([1, 3]), SEEN)
    assert result.gzsl_s == 0 and result.gzsl_h == 0 and result.ausuc == 0
    curve = SeenUnseenCurve(np.array([-np.inf]), np.array([0.0]), np.array([0.5]))
    assert curve.best_gamma == 0.0 and curve.at(3.0) == (0.0, 0.5, 0.0)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.floats(-2, 3), st.floats(-2, 3), st.integers(1, 30))
def test_the_mapping_of_eszsl_is_the_closed_form(seed, log10_gamma, log10_lambda, images):
    rng = np.random.default_rng(seed)
    x, a = rng.normal(size=(images, 7)), rng.random((5, 4))
    labels = rng.integers(0, 5, images)
    gamma, lambda_ = 10**log10_gamma, 10**log10_lambda
    y = np.where(labels[:, None] == np.arange(5), 1.0, -1.0)
    left = np.linalg.inv(x.T @ x + gamma * np.eye(7))
    right = np.linalg.inv(a.T @ a + lambda_ * np.eye(4))
    expected = left @ x.T @ y @ a @ right
    found = prepare_eszsl(x, labels, a)(gamma, lambda_)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(eszsl_scores(x, found, a), x @ found @ a.T)
