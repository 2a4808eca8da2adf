"""Stretches of an experiment's training, in this process: what the benchmarks time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from mgmrn.config import ExperimentConfig
from mgmrn.data.splits import TuneData, load_tune
from mgmrn.device import usual_device
from mgmrn.engine import Batch, EpochStats, Inputs, Trainer, build_trainer, evaluate, train_epoch
from mgmrn.feed import Feed, Share, open_feed
from mgmrn.memory import keep_freed_memory
from mgmrn.model.network import levels_of
from pipeline.config.compose import resolve_weights


@dataclass(frozen=True)
class Stretch:
    """An experiment that is ready to train on its `tune` split."""

    config: ExperimentConfig
    data: TuneData
    feed: Feed
    trainer: Trainer
    device: torch.device

    def batches(self, number: int) -> Iterator[Batch]:
        """The first batches of an endless training."""
        return islice(chain.from_iterable(self.feed.train_batches(epoch) for epoch in count()), number)

    def train(self, number: int) -> EpochStats:
        """Trains on so many batches; each call begins with the first."""
        return train_epoch(self.trainer, self.batches(number))

    def scores(self, inputs: Iterable[Inputs]) -> Float[np.ndarray, "N U"]:
        """Scores of evaluation images over all classes."""
        attributes = torch.from_numpy(self.data.classes.attributes)
        return evaluate(self.trainer.network, inputs, attributes, self.config, self.device)


def open_stretch(
    config: ExperimentConfig,
    data_root: Path,
    cache_root: Path,
    *,
    steps: int,
    share: Share | None = None,
    device: torch.device | None = None,
    loader_workers: int = 0,
) -> Stretch:
    """Reads data and builds network and trainer; fills the feature cache where the experiment wants one and it is missing.

    Args:
        config: what is trained.
        data_root: folder of the benchmarks.
        cache_root: folder of cached features.
        steps: that the learning-rate schedule must reach over.
        share: of the batches, among several ranks; without it, all.
        device: without it, a GPU where there is one.
        loader_workers: processes that decode; 0: a thread.

    Raises:
        UserError: for weights that are not there, or a broken data set.
    """
    keep_freed_memory()
    share = share or Share()
    device = device or usual_device()
    config = resolve_weights(config, data_root.resolve())
    data = load_tune(data_root, config.benchmark)
    feed = open_feed(config, data, cache_root, share, device, loader_workers)
    trainer = build_trainer(
        feed.network,
        torch.from_numpy(data.classes.attributes[data.classes.seen_ids]),
        config,
        levels=levels_of(config.model),
        global_batch=feed.global_batch,
        steps_per_epoch=max(feed.steps_per_epoch, steps),
        device=device,
        world_size=share.world_size,
    )
    return Stretch(config, data, feed, trainer, device)
