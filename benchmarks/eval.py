"""Evaluation at the sizes of CUB, SUN and AWA2: scoring against the paper's sum of cosines pair by pair, and the exact seen–unseen curve
against the sweep over γ that published code runs.

Scores are drawn so that accuracies look like those of a trained network (U and S between 0.4 and 0.8), at a scale of 20. The sweep is as the
field writes it: for each γ of a grid of step 0.01, subtract, argmax, per-class accuracy.
N images, U classes, S attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks import measure
from mgmrn.config import Level
from mgmrn.data.published import PUBLISHED, PublishedSplits
from mgmrn.feed import EVALUATION_BATCH
from mgmrn.metrics import harmonic_mean, mean_class_accuracy, seen_unseen_curve
from mgmrn.model.network import class_scores

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
STEP = 0.01
SCALE = 20.0

AttributeVectors = Mapping[Level, Float[Tensor, "N S"]]
Figures = tuple[list[measure.Timing], dict[str, float]]
"""Timings, and compared differences by name."""


class Scores(NamedTuple):
    """Scores of a test, as `seen_unseen_curve` takes them."""

    seen_scores: Float[np.ndarray, "N_s U"]
    seen_labels: Int[np.ndarray, " N_s"]
    unseen_scores: Float[np.ndarray, "N_u U"]
    unseen_labels: Int[np.ndarray, " N_u"]
    seen: Bool[np.ndarray, " U"]


def main() -> None:
    """Times scoring and curves at the sizes of some benchmarks."""
    parser = measure.parser_of(__doc__, rounds=3)
    parser.add_argument("--benchmarks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), help="all without it")
    arguments = parser.parse_args()
    results: list[measure.Timing] = []
    differences: dict[str, float] = {}
    for name in arguments.benchmarks:
        for part in (scoring, curve):
            timings, compared = part(name, PUBLISHED[name], arguments.rounds)
            results, differences = results + timings, differences | compared
    measure.show("eval", results, "numpy torch", differences, levels=len(LEVELS), threads=torch.get_num_threads())


def scoring(name: str, size: PublishedSplits, rounds: int) -> Figures:
    """Times scores of a whole test over all classes, batch by batch."""
    generator = torch.Generator().manual_seed(0)
    images = size.test_seen + size.test_unseen
    vectors = {level: torch.randn(images, size.attributes, generator=generator) for level in LEVELS}
    classes = torch.rand(size.seen + size.unseen, size.attributes, generator=generator)
    difference = float((score(vectors, classes) - score_pairwise(vectors, classes)).abs().max())  # And warms both up.
    works = {
        f"{name} scores": lambda: score(vectors, classes),
        f"{name} scores, pair by pair": lambda: score_pairwise(vectors, classes),
    }
    timings = measure.compare_seconds(f"{name} pair by pair / scores", works, rounds)
    return timings, {f"{name} largest difference of scores": difference}


def score(vectors: AttributeVectors, classes: Float[Tensor, "U S"]) -> Float[Tensor, "N U"]:
    """Scores as evaluation computes them."""
    return torch.cat([class_scores(part, classes, SCALE) for part in _batches(vectors)])


def score_pairwise(vectors: AttributeVectors, classes: Float[Tensor, "U S"]) -> Float[Tensor, "N U"]:
    """Scores by the paper's sum: one cosine for each level, image and class."""
    rows = []
    for part in _batches(vectors):
        cosines = [F.cosine_similarity(v[:, None], classes[None], dim=2) for v in part.values()]
        rows.append(SCALE * torch.stack(cosines).sum(dim=0))
    return torch.cat(rows)


def _batches(vectors: AttributeVectors) -> list[dict[Level, Tensor]]:
    parts = zip(*(torch.split(v, EVALUATION_BATCH) for v in vectors.values()), strict=True)
    return [dict(zip(vectors, part, strict=True)) for part in parts]


def curve(name: str, size: PublishedSplits, rounds: int) -> Figures:
    """Times the exact curve and the sweep, and compares their results."""
    scores = draw_scores(size)
    exact = seen_unseen_curve(*scores)
    swept: list[tuple[float, float]] = []
    works = {
        f"{name} exact curve": lambda: seen_unseen_curve(*scores),
        f"{name} sweep by {STEP}": lambda: swept.append(sweep(scores)),
    }
    timings = measure.compare_seconds(f"{name} sweep / exact", works, rounds)
    ausuc, best_harmonic = swept[-1]
    return timings, {
        f"{name} AUSUC exact − sweep": exact.ausuc - ausuc,
        f"{name} best H exact − sweep": exact.best_harmonic - best_harmonic,
    }


def draw_scores(size: PublishedSplits) -> Scores:
    """Scores of a benchmark's size: noise, plus a bonus for the true class, plus a bias towards seen classes."""
    rng = np.random.default_rng(0)
    seen = np.zeros(size.seen + size.unseen, dtype=bool)
    seen[rng.permutation(len(seen))[: size.seen]] = True

    def draw(images: int, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = columns[rng.integers(len(columns), size=images)]
        cosines = rng.normal(0.5, 0.1, (images, len(seen))).astype(np.float32)
        cosines[np.arange(images), labels] += 0.3
        cosines[:, seen] += 0.05
        return SCALE * cosines, labels

    return Scores(
        *draw(size.test_seen, np.flatnonzero(seen)), *draw(size.test_unseen, np.flatnonzero(~seen)), seen=seen
    )


def sweep(scores: Scores) -> tuple[float, float]:
    """AUSUC and best H over a grid of γ that covers every threshold, by subtraction and argmax."""
    both = np.concatenate([scores.seen_scores, scores.unseen_scores])
    thresholds = both[:, scores.seen].max(axis=1) - both[:, ~scores.seen].max(axis=1)
    grid = np.arange(thresholds.min() - STEP, thresholds.max() + 2 * STEP, STEP)
    unseen, seen = np.zeros(len(grid)), np.zeros(len(grid))
    for point, gamma in enumerate(grid):
        bias = np.float32(gamma) * scores.seen.astype(np.float32)
        unseen[point] = mean_class_accuracy((scores.unseen_scores - bias).argmax(axis=1), scores.unseen_labels)
        seen[point] = mean_class_accuracy((scores.seen_scores - bias).argmax(axis=1), scores.seen_labels)
    area = float(np.sum(np.diff(unseen) * (seen[1:] + seen[:-1])) / 2)
    return area, float(harmonic_mean(unseen, seen).max())


if __name__ == "__main__":
    measure.run_script(main)
