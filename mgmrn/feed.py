"""Batches of a run: pictures, or the cached maps of a frozen backbone.

A rank loads its own share of every global batch; the global batches depend on the seed and the epoch alone. N images, C
channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mgmrn.config import EpisodicSampling, ExperimentConfig, Level
from mgmrn.data.episodes import EpisodicBatches, Epoch, PlainBatches, Rows, eval_shard, shard
from mgmrn.data.feature_cache import CachedMaps, Progress, ensure_cache
from mgmrn.data.loading import evaluation_loader, prefetch, train_loader
from mgmrn.data.resident_maps import ResidentMaps, place_maps
from mgmrn.data.splits import ClassTable, FinalData, Images, TuneData, evaluation_images
from mgmrn.engine import Batch, Inputs
from mgmrn.model.network import build_model, levels_of

EVALUATION_BATCH = 64
FLIP_STREAM = 3
"""Separates the random numbers of flips from those of sampling, which share seed and epoch."""


@dataclass(frozen=True)
class Share:
    """This process's part of every global batch."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class MapSource:
    """Cached maps of a frozen backbone, in files or on a device."""

    config: ExperimentConfig
    train: CachedMaps | ResidentMaps
    held_out: CachedMaps | ResidentMaps

    def training(self, epochs: Iterable[Epoch]) -> Iterator[Inputs]:
        """Maps `B C h w` of each batch; with flips a random half of them, by seed and epoch, of the mirrored picture."""
        count = len(self.train.rows)
        for epoch, batches in epochs:
            mirrored = np.zeros(count, dtype=bool)
            if self.config.benchmark.images.flip:
                mirrored = np.random.default_rng([self.config.seed, epoch, 0, FLIP_STREAM]).random(count) < 0.5
            yield from self.train.batches(batches, mirrored)

    def evaluation(self, rows: Rows, mirrored: bool) -> Iterator[Inputs]:
        """Maps of the pictures or of their mirror images, `EVALUATION_BATCH` at a time."""
        parts = [rows[i : i + EVALUATION_BATCH] for i in range(0, len(rows), EVALUATION_BATCH)]
        return self.held_out.batches(parts, np.full(len(self.held_out.rows), mirrored))


@dataclass(frozen=True)
class PictureSource:
    """Pictures, decoded and augmented by worker processes."""

    config: ExperimentConfig
    train: Images
    held_out: Images
    loader_workers: int

    def training(self, epochs: Iterable[Epoch]) -> Iterator[Inputs]:
        """Augmented pictures `B 3 H W` of each batch."""
        return train_loader(self.train, self.config.benchmark.images, epochs, self.config.seed, self.loader_workers)

    def evaluation(self, rows: Rows, mirrored: bool) -> Iterator[Inputs]:
        """Pictures or their mirror images, resized and cropped in the middle, `EVALUATION_BATCH` at a time."""
        images = self.config.benchmark.images
        batches = evaluation_loader(self.held_out.take(rows), images, EVALUATION_BATCH, self.loader_workers)
        return (batch.flip(3) if mirrored else batch for batch in batches)


class Feed:
    """Batches of a split for one rank; `network` is trained: `image_model`, or its head alone with `cache_features`.

    `cache_root` is the folder of cached features, `device` that of the backbone while they are computed.
    `loader_workers` processes decode pictures; 0 decodes in a thread. Raises UserError for an unreadable picture or
    weights that do not fit, and ResourceError when the cache does not fit on the disk.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: TuneData | FinalData,
        cache_root: Path,
        share: Share,
        device: torch.device,
        loader_workers: int = 0,
        progress: Progress = lambda message: None,
    ) -> None:
        self.image_model = build_model(config.model, torch.from_numpy(data.word_vectors))
        # Before features are cached, so that its errors come early.
        batches = _batches(config, data.train)
        self.steps_per_epoch = len(batches)
        self.global_batch = batches.global_batch
        self.network: nn.Module = self.image_model
        self.told = ""
        """A sentence on where maps lie, or nothing."""
        self._source: MapSource | PictureSource
        self._ahead: Callable[[Iterable[Inputs]], Iterator[Inputs]] = prefetch
        if config.cache_features:
            self.network = self.image_model.head
            maps, self.told = place_maps(cached_maps(config, data, cache_root, device, progress), device)
            self._source = MapSource(config, *maps)
            if isinstance(maps[0], ResidentMaps):
                self._ahead = iter  # The device is asked for a batch, and not waited for.
        else:
            self._source = PictureSource(config, data.train, evaluation_images(data), loader_workers)
        self._device = device
        self._shares = partial(shard, batches, rank=share.rank, world_size=share.world_size)
        self._epochs = config.schedule.epochs
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
            self._stream = self._ahead(self._source.training((one, list(shares(one))) for one in epochs))
        self._loading = None
        batches = list(shares(epoch))
        # Copied to the device once an epoch.
        targets = self._targets[torch.from_numpy(np.concatenate(batches))].to(self._device)
        for rows, of_rows in zip(batches, torch.split(targets, [len(rows) for rows in batches]), strict=True):
            yield Batch(next(self._stream), of_rows, self._ids[rows])
        self._loading = epoch + 1 if epoch + 1 < self._epochs else None

    def evaluation_inputs(self, mirrored: bool = False) -> Iterator[Inputs]:
        """This rank's contiguous share of the evaluation images or of their mirror images, seen first, never padded."""
        return self._ahead(self._source.evaluation(self._evaluation, mirrored))


def seen_targets(images: Images, classes: ClassTable) -> Int[Tensor, " N"]:
    """Labels as indices among the seen classes, which the loss classifies."""
    return torch.from_numpy(np.searchsorted(classes.seen_ids, images.labels))


def cached_maps(
    config: ExperimentConfig,
    data: TuneData | FinalData,
    cache_root: Path,
    device: torch.device,
    progress: Progress,
    levels: Sequence[Level] | None = None,
) -> tuple[CachedMaps, CachedMaps]:
    """Maps of the training and of the evaluation images, of the model's levels or of `levels`.

    `tune` opens one cache, `final` two: those of `cached_pools`.
    """
    images, backbone, wanted = config.benchmark.images, config.model.backbone, levels or levels_of(config.model)

    def cache(of: Images, flip: bool) -> CachedMaps:
        return ensure_cache(cache_root, of, images, backbone, wanted, flip=flip, device=device, progress=progress)

    pool, *test = cached_pools(data)
    pool_maps = cache(pool, images.flip or config.mirror_scores)
    train = pool_maps.take(np.searchsorted(pool.ids, data.train.ids))
    if test:
        return train, cache(test[0], config.mirror_scores)
    return train, pool_maps.take(np.searchsorted(pool.ids, evaluation_images(data).ids))


def cached_pools(data: TuneData | FinalData) -> tuple[Images, ...]:
    """Images of each cache that a split opens: all trainable ones of seen classes, sorted by id, and on `final` the test images."""
    evaluation = evaluation_images(data)
    pool = data.train if isinstance(data, FinalData) else data.train.followed_by(evaluation)
    pool = pool.take(np.argsort(pool.ids))
    return (pool, evaluation) if isinstance(data, FinalData) else (pool,)


def _batches(config: ExperimentConfig, images: Images) -> PlainBatches | EpisodicBatches:
    sampling = config.sampling
    if isinstance(sampling, EpisodicSampling):
        return EpisodicBatches(images.labels, sampling.ways, sampling.shots, sampling.episodes, config.seed)
    return PlainBatches(len(images.ids), sampling.batch, config.seed)
