from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.eszsl import eszsl_scores, prepare_eszsl
from mgmrn.model.attribute_network import AttributeNetwork


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    log10_gamma=st.floats(-2, 3),
    log10_lambda=st.floats(-2, 3),
    images=st.integers(1, 30),
)
def test_eszsl_is_its_closed_form(seed: int, log10_gamma: float, log10_lambda: float, images: int) -> None:
    rng = np.random.default_rng(seed)
    x, a = rng.normal(size=(images, 7)), rng.random((5, 4))
    labels = rng.integers(0, 5, images)
    gamma, lambda_ = 10**log10_gamma, 10**log10_lambda
    y = np.where(labels[:, None] == np.arange(5), 1.0, -1.0)
    left = np.linalg.inv(x.T @ x + gamma * np.eye(7))
    right = np.linalg.inv(a.T @ a + lambda_ * np.eye(4))
    expected = left @ x.T @ y @ a @ right
    found = prepare_eszsl(x, labels, a).solve(gamma, lambda_)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(eszsl_scores(x, found, a), x @ found @ a.T)


def test_eszsl_is_far_above_chance_on_unseen_classes_of_a_linear_world() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 8))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    mixing = rng.normal(size=(8, 16))
    seen = rng.integers(0, 20, 400)
    unseen = rng.integers(20, 30, 200)
    x, test = a[seen] @ mixing, a[unseen] @ mixing
    v = prepare_eszsl(x, seen, a[:20]).solve(1.0, 0.1)
    correct = eszsl_scores(test + 0.05 * rng.normal(size=test.shape), v, a[20:]).argmax(axis=1) == unseen - 20
    assert correct.mean() > 0.4  # Chance is 0.1.


def test_attribute_network_pools_and_maps() -> None:
    network = AttributeNetwork("c5", 6, torch.randn(4, 9))
    maps = {"c5": torch.randn(3, 6, 2, 5)}
    expected = network.linear(maps["c5"].flatten(2).mean(dim=2))
    torch.testing.assert_close(network(maps).attributes["c5"], expected)
    torch.testing.assert_close(network.forward_level(maps, "c5").attributes["c5"], expected)
    assert network.needed_maps("c5").values == ("c5",)
    assert "word_vectors" in network.state_dict()
    with pytest.raises(AssertionError, match="c5 alone"):
        network.needed_maps("c4")
