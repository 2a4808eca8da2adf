"""What a run trains on: batches from pictures, or from the cached maps of a frozen backbone.

The two feeds answer the same questions, so that training and evaluation are written once. A rank asks for its own share only; what
all ranks together see depends on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mgmrn.baselines import AttributeNetwork
from mgmrn.config import EpisodicSampling, ExperimentConfig, Level
from mgmrn.data.episodes import EpisodicBatches, PlainBatches, eval_shard
from mgmrn.data.feature_cache import FeatureCache, ensure_cache
from mgmrn.data.images import evaluation_loader, train_loader
from mgmrn.data.prefetch import prefetch
from mgmrn.data.splits import ClassTable, FinalData, Images, TuneData, evaluation_images
from mgmrn.engine import Batch, Inputs
from mgmrn.model.backbone import Pyramid, build_backbone
from mgmrn.model.network import ImageModel, MgMRN, build_head, levels_of

EVALUATION_BATCH = 64
FLIP_STREAM = 3
"""Keeps the random numbers of flips apart from those of sampling, which share seed and epoch."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Share:
    """Which part of every global batch is this process's."""

    rank: int = 0
    world_size: int = 1


class Feed(Protocol):
    """Batches of one split for one rank."""

    @property
    def network(self) -> nn.Module:
        """What is trained: the head alone on cached maps, or the network with its backbone."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""

    @property
    def global_batch(self) -> int:
        """Images of a global batch."""

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of every global batch of an epoch."""

    def evaluation_inputs(self) -> Iterator[Inputs]:
        """This rank's contiguous share of the evaluation images, seen first, never padded."""

    def image_model(self) -> ImageModel:
        """The network with its backbone."""


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
    levels = levels_of(config.model)
    backbone = build_backbone(config.model.backbone, levels)
    head = build_head(config.model, backbone.channels, torch.from_numpy(data.word_vectors))
    if config.cache_features:
        return CachedFeed(config, data, cache_root, share, device, backbone, head, progress)
    return PictureFeed(config, data, share, loader_workers, backbone, head)


class CachedFeed:
    """Maps of a frozen backbone, computed once for all runs; the head is trained alone."""

    def __init__(
        self,
        config: ExperimentConfig,
        data: TuneData | FinalData,
        cache_root: Path,
        share: Share,
        device: torch.device,
        backbone: Pyramid,
        head: MgMRN | AttributeNetwork,
        progress: Progress,
    ) -> None:
        self._head = head
        self._backbone = backbone
        self._config = config
        self._share = share
        self._train = data.train
        self._targets = seen_targets(data.train, data.classes)
        self._batches = _batches(config, data.train)
        self._maps, evaluation = cached_maps(config, data, cache_root, device, progress)
        self._evaluation = evaluation.take(eval_shard(len(evaluation.rows), share.rank, share.world_size))

    @property
    def network(self) -> nn.Module:
        return self._head

    @property
    def steps_per_epoch(self) -> int:
        return len(self._batches)

    @property
    def global_batch(self) -> int:
        return self._batches.global_batch

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        return prefetch(self._gathered(epoch))

    def _gathered(self, epoch: int) -> Iterator[Batch]:
        flips = flip_coins(self._config, epoch, len(self._train.ids))
        for rows in self._batches.shard(epoch, self._share.rank, self._share.world_size):
            yield Batch(
                self._maps.take(rows).maps(flips[rows]), self._targets[torch.from_numpy(rows)], self._train.ids[rows]
            )

    def evaluation_inputs(self) -> Iterator[Inputs]:
        rows = np.arange(len(self._evaluation.rows))
        parts = (self._evaluation.take(rows[i : i + EVALUATION_BATCH]) for i in range(0, len(rows), EVALUATION_BATCH))
        return prefetch(part.maps(np.zeros(len(part.rows), dtype=bool)) for part in parts)

    def image_model(self) -> ImageModel:
        return ImageModel(self._backbone, self._head)


class PictureFeed:
    """Pictures, decoded and augmented by worker processes; backbone and head are trained together."""

    def __init__(
        self,
        config: ExperimentConfig,
        data: TuneData | FinalData,
        share: Share,
        loader_workers: int,
        backbone: Pyramid,
        head: MgMRN | AttributeNetwork,
    ) -> None:
        self._model = ImageModel(backbone, head)
        self._workers = loader_workers
        self._config = config
        self._share = share
        self._train = data.train
        self._targets = seen_targets(data.train, data.classes)
        self._batches = _batches(config, data.train)
        self._evaluation = evaluation_images(data)

    @property
    def network(self) -> nn.Module:
        return self._model

    @property
    def steps_per_epoch(self) -> int:
        return len(self._batches)

    @property
    def global_batch(self) -> int:
        return self._batches.global_batch

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        shares = list(self._batches.shard(epoch, self._share.rank, self._share.world_size))
        images, seed = self._config.benchmark.images, self._config.seed
        loader = prefetch(train_loader(self._train, images, shares, seed, epoch, self._workers))
        for rows, pictures in zip(shares, loader, strict=True):
            yield Batch(pictures, self._targets[torch.from_numpy(rows)], self._train.ids[rows])

    def evaluation_inputs(self) -> Iterator[Inputs]:
        rows = eval_shard(len(self._evaluation.ids), self._share.rank, self._share.world_size)
        images = self._evaluation.take(rows)
        return prefetch(evaluation_loader(images, self._config.benchmark.images, EVALUATION_BATCH, self._workers))

    def image_model(self) -> ImageModel:
        return self._model


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
    config: ExperimentConfig, data: TuneData | FinalData, cache_root: Path, device: torch.device, progress: Progress
) -> tuple[CachedMaps, CachedMaps]:
    """Maps of the training and of the evaluation images.

    There are two caches: all images of seen classes that may be trained on, which is all that `tune` opens and what `final` trains on, and
    the test images.
    """

    def cache(images: Images, flip: bool) -> FeatureCache:
        return ensure_cache(
            cache_root,
            images,
            config.benchmark.images,
            config.model.backbone,
            levels_of(config.model),
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
