"""`bench cache`: an epoch of a `tune` run on cached maps against the same epoch from pictures, measured side by side.

An epoch is a pass over the training images and one over the evaluation images. Both kinds run the same head on the same batches; a
stretch of each is timed in turn, several times, and the whole epoch follows from its rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

from mgmrn.config import ExperimentConfig
from mgmrn.data.splits import TuneData, load_tune
from mgmrn.engine import Trainer, build_trainer, evaluate, train_epoch
from mgmrn.errors import UserError
from mgmrn.feed import EVALUATION_BATCH, Feed, Share, open_feed
from mgmrn.memory import keep_freed_memory
from mgmrn.model.network import levels_of
from pipeline.bench.report import BenchReport, Timing, environment
from pipeline.compose import resolve_weights

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
    keep_freed_memory()
    config = resolve_weights(config, data_root.resolve())
    data = load_tune(data_root, config.benchmark)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = {
        "cached maps": _Epoch(config, data, cache_root, device),
        "pictures": _Epoch(config.model_copy(update={"cache_features": False}), data, cache_root, device),
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

    def __init__(self, config: ExperimentConfig, data: TuneData, cache_root: Path, device: torch.device) -> None:
        self._feed: Feed = open_feed(config, data, cache_root, Share(), device)
        self._config, self._data, self._device = config, data, device
        self._trainer: Trainer = build_trainer(
            self._feed.network,
            torch.from_numpy(data.classes.attributes[data.classes.seen_ids]),
            config,
            levels=levels_of(config.model),
            global_batch=self._feed.global_batch,
            steps_per_epoch=self._feed.steps_per_epoch,
            device=device,
        )

    def seconds(self) -> float:
        """Of a whole epoch, by the rate of a stretch of it."""
        training = _timed(lambda: train_epoch(self._trainer, islice(self._feed.train_batches(0), TRAIN_BATCHES)))
        evaluation = _timed(lambda: self._evaluate(islice(self._feed.evaluation_inputs(), EVALUATION_BATCHES)))
        images = len(self._data.seen) + len(self._data.unseen)
        return (
            training * self._feed.steps_per_epoch / TRAIN_BATCHES
            + evaluation * images / EVALUATION_BATCH / EVALUATION_BATCHES
        )

    def _evaluate(self, inputs: Iterator[object]) -> None:
        attributes = torch.from_numpy(self._data.classes.attributes)
        evaluate(self._trainer.network, inputs, attributes, self._config, self._device)  # type: ignore[arg-type]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
