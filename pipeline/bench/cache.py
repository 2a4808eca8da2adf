"""`bench cache`: an epoch of a `tune` run on cached maps against the same epoch from pictures, measured side by side.

An epoch is a pass over the training images and one over the evaluation images. Both kinds run the same head on the same batches; a
stretch of each is timed in turn, several times, and the whole epoch follows from its rate.
"""

from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from mgmrn.sources import EVALUATION_BATCH
from pipeline.bench.report import BenchReport, Timing, environment, seconds_of
from pipeline.bench.stretch import open_stretch

REPEATS = 5
TRAIN_BATCHES = 4
EVALUATION_BATCHES = 2


def run(config: ExperimentConfig, data_root: Path, cache_root: Path) -> BenchReport:
    """Times both kinds of epoch.

    Args:
        config: an experiment on cached features.
        data_root: folder of the benchmarks.
        cache_root: folder of cached features; filled where they are missing, which is not timed.

    Raises:
        UserError: for a config that caches nothing, or a broken data set.
    """
    if not config.cache_features:
        raise UserError("the experiment does not train on cached features", "cache_features", "set cache_features=true")
    kinds = {
        "cached maps": _Epoch(config, data_root, cache_root),
        "pictures": _Epoch(config.model_copy(update={"cache_features": False}), data_root, cache_root),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for name in [*kinds, *(name for _ in range(REPEATS) for name in kinds)]:
        seconds[name].append(kinds[name].seconds())
    results = tuple(
        Timing(f"epoch from {name}", statistics.median(found[1:]), min(found[1:]), max(found[1:]), "s", REPEATS)
        for name, found in seconds.items()
    )
    ratio = results[1].median / results[0].median
    return BenchReport("cache", environment(("torch", "torchvision")), results, {"pictures / cached maps": ratio})


class _Epoch:
    """One kind of epoch, of which stretches are timed."""

    def __init__(self, config: ExperimentConfig, data_root: Path, cache_root: Path) -> None:
        self._stretch = open_stretch(config, data_root, cache_root, steps=TRAIN_BATCHES * (REPEATS + 1))

    def seconds(self) -> float:
        """Of a whole epoch, by the rate of a stretch of it."""
        feed, data = self._stretch.feed, self._stretch.data
        training = seconds_of(lambda: self._stretch.train(TRAIN_BATCHES))
        evaluation = seconds_of(self._evaluate)
        images = len(data.seen) + len(data.unseen)
        return (
            training * feed.steps_per_epoch / TRAIN_BATCHES
            + evaluation * images / EVALUATION_BATCH / EVALUATION_BATCHES
        )

    def _evaluate(self) -> None:
        self._stretch.scores(islice(self._stretch.feed.evaluation_inputs(), EVALUATION_BATCHES))
