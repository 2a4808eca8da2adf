"""Baseline: ESZSL in closed form (Romera-Paredes & Torr, ICML 2015).

N images, F features, S attributes, U classes. With features X (N F), labels Y (N U, ±1) and attributes A (U S):

    V = (XᵀX + γI)⁻¹ XᵀY A (AᵀA + λI)⁻¹
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class ESZSLProblem:
    """ESZSL with both Gram matrices diagonalised, which makes further pairs of regularisers cheap."""

    feature_values: Float[np.ndarray, " F"]
    feature_vectors: Float[np.ndarray, "F F"]
    attribute_values: Float[np.ndarray, " S"]
    attribute_vectors: Float[np.ndarray, "S S"]
    rotated: Float[np.ndarray, "F S"]
    """XᵀY A in the two eigenbases."""

    def solve(self, gamma: float, lambda_: float) -> Float[np.ndarray, "F S"]:
        """V for one pair of positive regularisers."""
        damped = self.rotated / (self.feature_values[:, None] + gamma) / (self.attribute_values + lambda_)
        return self.feature_vectors @ damped @ self.attribute_vectors.T


def prepare_eszsl(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], attributes: Float[np.ndarray, "U S"]
) -> ESZSLProblem:
    """Diagonalises the problem in float64; labels are rows of `attributes`, which holds the classes to train on."""
    x = np.asarray(features, dtype=np.float64)
    a = np.asarray(attributes, dtype=np.float64)
    class_sums = np.zeros((len(a), x.shape[1]))
    np.add.at(class_sums, labels, x)
    # Y is +1 at an image's class and −1 elsewhere: XᵀY = 2·class sums − total, without the N × U matrix.
    correlation = (2 * class_sums - x.sum(axis=0)).T @ a
    feature_values, feature_vectors = np.linalg.eigh(x.T @ x)
    attribute_values, attribute_vectors = np.linalg.eigh(a.T @ a)
    return ESZSLProblem(
        # Rounding leaves tiny negative eigenvalues, which a small regulariser would not cover.
        feature_values.clip(min=0),
        feature_vectors,
        attribute_values.clip(min=0),
        attribute_vectors,
        feature_vectors.T @ correlation @ attribute_vectors,
    )


def eszsl_scores(
    features: Float[np.ndarray, "N F"], v: Float[np.ndarray, "F S"], attributes: Float[np.ndarray, "U S"]
) -> Float[np.ndarray, "N U"]:
    """Compatibility `x V a_u` of every image with every class, float64."""
    return np.asarray(features, dtype=np.float64) @ v @ np.asarray(attributes, dtype=np.float64).T
