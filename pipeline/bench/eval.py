"""`bench eval`: scoring, and the exact seen–unseen curve against the sweep over γ that published code runs, at the benchmarks' true sizes.

The curve's scores are drawn so that accuracies look like those of a trained network (U and S between 0.4 and 0.8); their scale is 20, that of
the cosine scores. The sweep is as the field writes it: for every γ of a grid of step 0.01, subtract, argmax, per-class accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from mgmrn.metrics import harmonic_mean, mean_class_accuracy, seen_unseen_curve
from mgmrn.sources import EVALUATION_BATCH
from pipeline.bench.report import BenchReport, Timing, environment, in_turn, measure, rounds_ratio, spread
from pipeline.bench.scoring import LEVELS, draw_predicted, scored, scored_plainly

STEP = 0.01
SCALE = 20.0
SCORINGS = 3
"""Of which those pair by pair take seconds."""


@dataclass(frozen=True)
class BenchmarkSize:
    """How many images and classes a benchmark's test has."""

    name: str
    seen_images: int
    unseen_images: int
    seen_classes: int
    unseen_classes: int
    attributes: int

    @property
    def images(self) -> int:
        """Of the whole test."""
        return self.seen_images + self.unseen_images

    @property
    def classes(self) -> int:
        """Of the generalised setting."""
        return self.seen_classes + self.unseen_classes


SIZES = (
    BenchmarkSize("CUB", 1764, 2967, 150, 50, 312),
    BenchmarkSize("SUN", 2580, 1440, 645, 72, 102),
    BenchmarkSize("AWA2", 5882, 7913, 40, 10, 85),
)


@dataclass(frozen=True)
class Scores:
    """A test's scores, as the protocol gets them."""

    seen_scores: Float[np.ndarray, "N_s U"]
    seen_labels: Int[np.ndarray, " N_s"]
    unseen_scores: Float[np.ndarray, "N_u U"]
    unseen_labels: Int[np.ndarray, " N_u"]
    seen: Bool[np.ndarray, " U"]


@dataclass(frozen=True)
class Swept:
    """What a sweep finds."""

    ausuc: float
    best_harmonic: float


def draw_scores(size: BenchmarkSize, seed: int = 0) -> Scores:
    """Scores of a benchmark's size: noise, plus a bonus for the true class, plus a bias towards seen classes."""
    rng = np.random.default_rng(seed)
    seen = np.zeros(size.classes, dtype=bool)
    seen[rng.permutation(size.classes)[: size.seen_classes]] = True

    def draw(images: int, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = columns[rng.integers(len(columns), size=images)]
        cosines = rng.normal(0.5, 0.1, (images, size.classes)).astype(np.float32)
        cosines[np.arange(images), labels] += 0.3
        cosines[:, seen] += 0.05
        return SCALE * cosines, labels

    seen_scores, seen_labels = draw(size.seen_images, np.flatnonzero(seen))
    unseen_scores, unseen_labels = draw(size.unseen_images, np.flatnonzero(~seen))
    return Scores(seen_scores, seen_labels, unseen_scores, unseen_labels, seen)


def sweep(scores: Scores) -> Swept:
    """AUSUC and best H from a grid of γ that covers every threshold, by subtraction and argmax."""
    both = np.concatenate([scores.seen_scores, scores.unseen_scores])
    thresholds = both[:, scores.seen].max(axis=1) - both[:, ~scores.seen].max(axis=1)
    grid = np.arange(thresholds.min() - STEP, thresholds.max() + 2 * STEP, STEP)
    seen_bias = scores.seen.astype(np.float32)
    unseen, seen = np.zeros(len(grid)), np.zeros(len(grid))
    for point, gamma in enumerate(grid):
        bias = np.float32(gamma) * seen_bias
        unseen[point] = mean_class_accuracy((scores.unseen_scores - bias).argmax(axis=1), scores.unseen_labels)
        seen[point] = mean_class_accuracy((scores.seen_scores - bias).argmax(axis=1), scores.seen_labels)
    area = float(np.sum(np.diff(unseen) * (seen[1:] + seen[:-1])) / 2)
    return Swept(area, float(harmonic_mean(unseen, seen).max()))


def run(repeats: int = 7) -> BenchReport:
    """Times all at the three sizes; the sweep once each, since it takes seconds."""
    results: list[Timing] = []
    ratios: dict[str, float] = {}
    for size in SIZES:
        for timings, compared in (_scoring(size), _curve(size, repeats)):
            results += timings
            ratios |= compared
    notes = (
        f"Scores of {len(LEVELS)} levels, in batches of {EVALUATION_BATCH} images; {torch.get_num_threads()} CPU threads.",
    )
    return BenchReport("eval", environment(("numpy", "torch")), tuple(results), ratios, notes)


def _scoring(size: BenchmarkSize) -> tuple[list[Timing], dict[str, float]]:
    predicted = draw_predicted(size.images, size.classes, size.attributes)
    names = {f"{size.name} scores": scored, f"{size.name} scores, pair by pair": scored_plainly}
    works = {name: partial(work, predicted, SCALE) for name, work in names.items()}
    difference = float((scored(predicted, SCALE) - scored_plainly(predicted, SCALE)).abs().max())  # And warms both up.
    seconds = in_turn(works, SCORINGS)
    timings = [spread(name, found, "s") for name, found in seconds.items()]
    ratio = rounds_ratio("", *reversed(seconds.values())).median
    return timings, {
        f"{size.name} pair by pair / scores": ratio,
        f"{size.name} largest difference of scores": difference,
    }


def _curve(size: BenchmarkSize, repeats: int) -> tuple[list[Timing], dict[str, float]]:
    scores = draw_scores(size)
    arguments = (scores.seen_scores, scores.seen_labels, scores.unseen_scores, scores.unseen_labels, scores.seen)
    curve = seen_unseen_curve(*arguments)
    exact = measure(f"{size.name} exact curve", lambda: seen_unseen_curve(*arguments), repeats)
    found: list[Swept] = []
    swept = measure(f"{size.name} sweep by {STEP}", lambda: found.append(sweep(scores)), 1)
    return [exact, swept], {
        f"{size.name} sweep / exact": swept.median / exact.median,
        f"{size.name} AUSUC exact − sweep": curve.ausuc - found[-1].ausuc,
        f"{size.name} best H exact − sweep": curve.best_harmonic - found[-1].best_harmonic,
    }
