"""Baseline: ESZSL in closed form (Romera-Paredes & Torr, ICML 2015).

N images, F features, S attributes, U classes. With features X (N F), labels Y (N U, ±1) and attributes A (U S):

    V = (XᵀX + γI)⁻¹ XᵀY A (AᵀA + λI)⁻¹
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int


def prepare_eszsl(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], attributes: Float[np.ndarray, "U S"]
) -> Callable[[float, float], Float[np.ndarray, "F S"]]:
    """The function that gives V, float64, for positive γ and λ; labels are rows of `attributes`, the classes to train on.

    Both Gram matrices are diagonalised once, which makes further pairs of regularisers cheap.
    """
    x = np.asarray(features, dtype=np.float64)
    a = np.asarray(attributes, dtype=np.float64)
    class_sums = np.zeros((len(a), x.shape[1]))
    np.add.at(class_sums, labels, x)
    # Y is +1 at an image's class and −1 elsewhere: XᵀY = 2·class sums − total, without the N × U matrix.
    correlation = (2 * class_sums - x.sum(axis=0)).T @ a
    feature_values, feature_vectors = np.linalg.eigh(x.T @ x)
    attribute_values, attribute_vectors = np.linalg.eigh(a.T @ a)
    rotated = feature_vectors.T @ correlation @ attribute_vectors

    def solve(gamma: float, lambda_: float) -> Float[np.ndarray, "F S"]:
        # Rounding leaves tiny negative eigenvalues, which a small regulariser would not cover.
        damped = rotated / (feature_values.clip(min=0)[:, None] + gamma) / (attribute_values.clip(min=0) + lambda_)
        return feature_vectors @ damped @ attribute_vectors.T

    return solve


def eszsl_scores(
    features: Float[np.ndarray, "N F"], v: Float[np.ndarray, "F S"], attributes: Float[np.ndarray, "U S"]
) -> Float[np.ndarray, "N U"]:
    """Compatibility `x V a_u` of every image with every class, float64."""
    return np.asarray(features, dtype=np.float64) @ v @ np.asarray(attributes, dtype=np.float64).T
