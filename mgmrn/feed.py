"""Batches of a run, from pictures or from the cached maps of a frozen backbone.

A rank loads its own share of every global batch; the global batches depend on the seed and the epoch alone. N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mgmrn.config import EpisodicSampling, ExperimentConfig
from mgmrn.data.episodes import EpisodicBatches, PlainBatches, eval_shard, shard
from mgmrn.data.kept import Progress
from mgmrn.data.loading import prefetch
from mgmrn.data.splits import ClassTable, FinalData, Images, TuneData
from mgmrn.engine import Batch, Inputs
from mgmrn.model.network import ImageModel, build_model
from mgmrn.sources import MapSource, PictureSource, Source, cached_maps, picture_files


@dataclass(frozen=True)
class Share:
    """This process's part of every global batch."""

    rank: int = 0
    world_size: int = 1


class Feed:
    """Batches of one split for one rank; `network` is trained: `image_model`, or its head alone on cached maps."""

    def __init__(
        self,
        data: TuneData | FinalData,
        batches: PlainBatches | EpisodicBatches,
        share: Share,
        source: Source,
        network: nn.Module,
        image_model: ImageModel,
        epochs: int,
    ) -> None:
        self.network = network
        self.image_model = image_model
        self.steps_per_epoch = len(batches)
        self.global_batch = batches.global_batch
        self._shares = partial(shard, batches, rank=share.rank, world_size=share.world_size)
        self._source = source
        self._epochs = epochs
        self._stream: Iterator[Inputs] = iter(())
        self._loading: int | None = None
        """Epoch of the next batch of the stream; None in the middle of an epoch."""
        self._ids = data.train.ids
        self._targets = seen_targets(data.train, data.classes)
        self._evaluation = eval_shard(len(data.seen) + len(data.unseen), share.rank, share.world_size)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of every global batch of an epoch.

        In consecutive epochs the first batches of the next one are loaded while the network is evaluated.
        """
        shares = self._shares
        if epoch != self._loading:
            epochs = range(epoch, max(epoch + 1, self._epochs))
            # Without a reference to the feed, so that the stream ends with it.
            self._stream = prefetch(self._source.training((one, list(shares(one))) for one in epochs))
        self._loading = None
        for rows in shares(epoch):
            yield Batch(next(self._stream), self._targets[torch.from_numpy(rows)], self._ids[rows])
        self._loading = epoch + 1 if epoch + 1 < self._epochs else None

    def evaluation_inputs(self, mirrored: bool = False) -> Iterator[Inputs]:
        """This rank's contiguous share of the evaluation images or of their mirror images, seen first, never padded."""
        return prefetch(self._source.evaluation(self._evaluation, mirrored))


def open_feed(
    config: ExperimentConfig,
    data: TuneData | FinalData,
    cache_root: Path,
    share: Share,
    device: torch.device,
    loader_workers: int = 0,
    progress: Progress = lambda message: None,
) -> Feed:
    """The feed of a config, by its `cache_features`.

    Args:
        cache_root: folder of cached features.
        device: device of the backbone while features are cached.
        loader_workers: processes that decode pictures; 0 decodes in a thread.

    Raises:
        UserError: for an unreadable picture or weights that do not fit.
        ResourceError: when the cache does not fit on the disk.
    """
    model = build_model(config.model, torch.from_numpy(data.word_vectors))
    batches = _batches(config, data.train)  # Before features are cached, so that its errors come early.
    if config.cache_features:
        maps = MapSource(config, *cached_maps(config, data, cache_root, device, progress))
        return Feed(data, batches, share, maps, model.head, model, config.schedule.epochs)
    pictures = PictureSource(config, *picture_files(config, data), loader_workers)
    return Feed(data, batches, share, pictures, model, model, config.schedule.epochs)


def seen_targets(images: Images, classes: ClassTable) -> Int[Tensor, " N"]:
    """Labels as indices among the seen classes, which the loss classifies."""
    return torch.from_numpy(np.searchsorted(classes.seen_ids, images.labels))


def _batches(config: ExperimentConfig, images: Images) -> PlainBatches | EpisodicBatches:
    sampling = config.sampling
    if isinstance(sampling, EpisodicSampling):
        return EpisodicBatches(images.labels, sampling.ways, sampling.shots, sampling.episodes, config.seed)
    return PlainBatches(len(images.ids), sampling.batch, config.seed)
