"""What Mg-MRN is compared with, on the same features and protocol.

N images, F features, S attributes, U classes, B images of a batch, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from mgmrn.config import Level
from mgmrn.model.output import NeededMaps, NetworkOutput


class AttributeNetwork(nn.Module):
    """One level, global average pooling, one linear map to the attributes.

    Args:
        level: level that is pooled.
        channels: C of its map.
        word_vectors: not read; their number says S, and an exported model holds them as one of Mg-MRN does.
    """

    word_vectors: Float[Tensor, "S L"]

    def __init__(self, level: Level, channels: int, word_vectors: Float[Tensor, "S L"]) -> None:
        super().__init__()
        self.level: Level = level
        self.linear = nn.Linear(channels, len(word_vectors))
        self.register_buffer("word_vectors", word_vectors.float().clone())

    def forward(self, maps: Mapping[Level, Float[Tensor, "B C h w"]]) -> NetworkOutput:
        """Attribute vector of the level."""
        return NetworkOutput({self.level: self.linear(maps[self.level].mean(dim=(2, 3)))}, {})

    def forward_level(self, maps: Mapping[Level, Float[Tensor, "B C h w"]], level: Level) -> NetworkOutput:
        """The same: there is one level."""
        assert level == self.level, f"the network has level {self.level} alone"
        output: NetworkOutput = self(maps)
        return output

    def needed_maps(self, level: Level) -> NeededMaps:
        """Its one map."""
        assert level == self.level, f"the network has level {self.level} alone"
        return NeededMaps((level,), (level,))


@dataclass(frozen=True)
class ESZSLProblem:
    """ESZSL (Romera-Paredes & Torr, ICML 2015) with both Gram matrices diagonalised: many regularisers are cheap.

    With features X (N F), labels Y (N U, ±1) and attributes A (U S):

        V = (XᵀX + γI)⁻¹ XᵀY A (AᵀA + λI)⁻¹
    """

    feature_values: Float[np.ndarray, " F"]
    feature_vectors: Float[np.ndarray, "F F"]
    attribute_values: Float[np.ndarray, " S"]
    attribute_vectors: Float[np.ndarray, "S S"]
    rotated: Float[np.ndarray, "F S"]
    """XᵀY A in the two eigenbases."""

    def solve(self, gamma: float, lambda_: float) -> Float[np.ndarray, "F S"]:
        """V for one pair of regularisers, both positive."""
        damped = self.rotated / (self.feature_values[:, None] + gamma) / (self.attribute_values + lambda_)
        mapping: np.ndarray = self.feature_vectors @ damped @ self.attribute_vectors.T
        return mapping


def prepare_eszsl(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], attributes: Float[np.ndarray, "U S"]
) -> ESZSLProblem:
    """The part of ESZSL that no regulariser changes; float64.

    Args:
        features: one row per training image.
        labels: index among the rows of `attributes`.
        attributes: of the classes that are trained on.
    """
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


def fit_eszsl(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, " N"],
    attributes: Float[np.ndarray, "U S"],
    gamma: float,
    lambda_: float,
) -> Float[np.ndarray, "F S"]:
    """V for one pair of regularisers; for a grid of them use `prepare_eszsl` once."""
    return prepare_eszsl(features, labels, attributes).solve(gamma, lambda_)


def eszsl_scores(
    features: Float[np.ndarray, "N F"], v: Float[np.ndarray, "F S"], attributes: Float[np.ndarray, "U S"]
) -> Float[np.ndarray, "N U"]:
    """Compatibility `x V aᵤ` of every image with every class, float64."""
    scores: np.ndarray = np.asarray(features, dtype=np.float64) @ v @ np.asarray(attributes, dtype=np.float64).T
    return scores
