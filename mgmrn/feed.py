"""What a run trains on: batches from pictures, or from the cached maps of a frozen backbone.

Training and evaluation know the feed alone; its source is pictures or maps. A rank asks for its own share only; what all ranks together
see depends on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mgmrn.config import EpisodicSampling, ExperimentConfig, Level
from mgmrn.data.episodes import EpisodicBatches, PlainBatches, Rows, eval_shard
from mgmrn.data.feature_cache import FeatureCache, Progress, ensure_cache
from mgmrn.data.images import evaluation_loader, train_loader
from mgmrn.data.prefetch import prefetch
from mgmrn.data.splits import ClassTable, FinalData, Images, TuneData, evaluation_images
from mgmrn.engine import Batch, Inputs
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head, levels_of

EVALUATION_BATCH = 64
FLIP_STREAM = 3
"""Keeps the random numbers of flips apart from those of sampling, which share seed and epoch."""


@dataclass(frozen=True)
class Share:
    """Which part of every global batch is this process's."""

    rank: int = 0
    world_size: int = 1


@runtime_checkable
class Source(Protocol):
    """What the network is given for the images of one split."""

    def training(self, epoch: int, batches: list[Rows]) -> Iterator[Inputs]:
        """Inputs of batches of training images, augmented for an epoch."""

    def evaluation(self, rows: Rows) -> Iterator[Inputs]:
        """Inputs of some evaluation images, `EVALUATION_BATCH` at a time."""


class Feed:
    """Batches of one split for one rank.

    Args:
        data: one split.
        batches: rows of the training images, batch by batch.
        share: this rank's part.
        source: where the network's inputs come from.
        network: what is trained: the head alone on cached maps, or the network with its backbone.
        image_model: the network with its backbone.
    """

    def __init__(
        self,
        data: TuneData | FinalData,
        batches: PlainBatches | EpisodicBatches,
        share: Share,
        source: Source,
        network: nn.Module,
        image_model: ImageModel,
    ) -> None:
        self.network = network
        self._image_model = image_model
        self.steps_per_epoch = len(batches)
        self.global_batch = batches.global_batch
        self._batches = batches
        self._share = share
        self._source = source
        self._ids = data.train.ids
        self._targets = seen_targets(data.train, data.classes)
        self._evaluation = eval_shard(len(data.seen) + len(data.unseen), share.rank, share.world_size)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of every global batch of an epoch."""
        shares = list(self._batches.shard(epoch, self._share.rank, self._share.world_size))
        for rows, inputs in zip(shares, prefetch(self._source.training(epoch, shares)), strict=True):
            yield Batch(inputs, self._targets[torch.from_numpy(rows)], self._ids[rows])

    def evaluation_inputs(self) -> Iterator[Inputs]:
        """This rank's contiguous share of the evaluation images, seen first, never padded."""
        return prefetch(self._source.evaluation(self._evaluation))

    def image_model(self) -> ImageModel:
        """The network with its backbone."""
        return self._image_model


def open_feed(
    config: ExperimentConfig,
    data: TuneData | FinalData,
    cache_root: Path,
    share: Share,
    device: torch.device,
    loader_workers: int = 0,
    progress: Progress = lambda message: None,
) -> Feed:
    """The feed that the config asks for.

    Args:
        config: the experiment; `cache_features` decides.
        data: one split.
        cache_root: folder of cached features.
        share: this rank's part.
        device: where the backbone runs while features are cached.
        loader_workers: processes that decode pictures; 0 decodes in a thread.
        progress: told what takes long.

    Raises:
        UserError: for an unreadable picture or weights that do not fit.
        ResourceError: when the cache does not fit on the disk.
    """
    backbone = build_backbone(config.model.backbone, levels_of(config.model))
    head = build_head(config.model, backbone.channels, torch.from_numpy(data.word_vectors))
    model = ImageModel(backbone, head)
    batches = _batches(config, data.train)  # Its errors come before features are cached, which takes long.
    if config.cache_features:
        maps = MapSource(config, *cached_maps(config, data, cache_root, device, progress))
        return Feed(data, batches, share, maps, head, model)
    pictures = PictureSource(config, data.train, evaluation_images(data), loader_workers)
    return Feed(data, batches, share, pictures, model, model)


@dataclass(frozen=True)
class MapSource:
    """Maps of a frozen backbone, computed once for all runs."""

    config: ExperimentConfig
    train: CachedMaps
    held_out: CachedMaps

    def training(self, epoch: int, batches: list[Rows]) -> Iterator[Inputs]:
        """Maps, some of them of the mirrored picture."""
        flips = flip_coins(self.config, epoch, len(self.train.rows))
        return (self.train.take(rows).maps(flips[rows]) for rows in batches)

    def evaluation(self, rows: Rows) -> Iterator[Inputs]:
        """Maps of the upright pictures."""
        parts = (self.held_out.take(rows[i : i + EVALUATION_BATCH]) for i in range(0, len(rows), EVALUATION_BATCH))
        return (part.maps(np.zeros(len(part.rows), dtype=bool)) for part in parts)


@dataclass(frozen=True)
class PictureSource:
    """Pictures, decoded and augmented by worker processes."""

    config: ExperimentConfig
    train: Images
    held_out: Images
    loader_workers: int

    def training(self, epoch: int, batches: list[Rows]) -> Iterator[Inputs]:
        """Augmented pictures."""
        images, seed = self.config.benchmark.images, self.config.seed
        return train_loader(self.train, images, batches, seed, epoch, self.loader_workers)

    def evaluation(self, rows: Rows) -> Iterator[Inputs]:
        """Pictures, resized and cropped in the middle."""
        images = self.config.benchmark.images
        return evaluation_loader(self.held_out.take(rows), images, EVALUATION_BATCH, self.loader_workers)


@dataclass(frozen=True)
class CachedMaps:
    """Some rows of a feature cache."""

    cache: FeatureCache
    rows: Int[np.ndarray, " N"]

    def take(self, rows: Int[np.ndarray, " M"]) -> CachedMaps:
        """Some of these rows."""
        return CachedMaps(self.cache, self.rows[rows])

    def maps(self, mirrored: Bool[np.ndarray, " N"]) -> dict[Level, Tensor]:
        """Maps `N C h w`, float16."""
        return self.cache.maps(self.rows, mirrored)

    def pooled(self, level: Level) -> Float[np.ndarray, "N C"]:
        """Globally averaged maps."""
        return self.cache.pooled(level)[self.rows]


def cached_maps(
    config: ExperimentConfig,
    data: TuneData | FinalData,
    cache_root: Path,
    device: torch.device,
    progress: Progress,
    levels: Sequence[Level] | None = None,
) -> tuple[CachedMaps, CachedMaps]:
    """Maps of the training and of the evaluation images; of the model's levels, or of others.

    There are two caches: all images of seen classes that may be trained on, which is all that `tune` opens and what `final` trains on, and
    the test images.
    """

    def cache(images: Images, flip: bool) -> FeatureCache:
        return ensure_cache(
            cache_root,
            images,
            config.benchmark.images,
            config.model.backbone,
            levels or levels_of(config.model),
            flip=flip,
            device=device,
            progress=progress,
        )

    evaluation = evaluation_images(data)
    pool = data.train if isinstance(data, FinalData) else data.train.followed_by(evaluation)
    pool = pool.take(np.argsort(pool.ids))
    pool_cache = cache(pool, config.benchmark.images.flip)
    train = CachedMaps(pool_cache, np.searchsorted(pool.ids, data.train.ids))
    if isinstance(data, FinalData):
        return train, CachedMaps(cache(evaluation, False), np.arange(len(evaluation)))
    return train, CachedMaps(pool_cache, np.searchsorted(pool.ids, evaluation.ids))


def seen_targets(images: Images, classes: ClassTable) -> Int[Tensor, " N"]:
    """Labels as indices among the seen classes, which the loss classifies."""
    return torch.from_numpy(np.searchsorted(classes.seen_ids, images.labels))


def flip_coins(config: ExperimentConfig, epoch: int, count: int) -> Bool[np.ndarray, " N"]:
    """Which training images are mirrored in an epoch: a pure function of seed and epoch."""
    if not config.benchmark.images.flip:
        return np.zeros(count, dtype=bool)
    return np.random.default_rng([config.seed, epoch, 0, FLIP_STREAM]).random(count) < 0.5


def _batches(config: ExperimentConfig, images: Images) -> PlainBatches | EpisodicBatches:
    sampling = config.sampling
    if isinstance(sampling, EpisodicSampling):
        return EpisodicBatches(images.labels, sampling.ways, sampling.shots, sampling.episodes, config.seed)
    return PlainBatches(len(images.ids), sampling.batch, config.seed)
