"""Inputs of a network for the images of a split: pictures, or the cached maps of a frozen backbone.

N images, M of them chosen, C channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int

from mgmrn.config import ExperimentConfig, Level
from mgmrn.data.episodes import Epoch, Rows
from mgmrn.data.feature_cache import CachedMaps, ensure_cache
from mgmrn.data.images import side_for_evaluation, side_for_training
from mgmrn.data.kept import Progress
from mgmrn.data.loading import PictureFiles, evaluation_loader, train_loader
from mgmrn.data.splits import FinalData, Images, TuneData, evaluation_images
from mgmrn.engine import Inputs
from mgmrn.model.network import levels_of

EVALUATION_BATCH = 64
FLIP_STREAM = 3
"""Separates the random numbers of flips from those of sampling, which share seed and epoch."""


@dataclass(frozen=True)
class MapSource:
    """Cached maps of a frozen backbone."""

    config: ExperimentConfig
    train: CachedMaps
    held_out: CachedMaps

    def training(self, epochs: Iterable[Epoch]) -> Iterator[Inputs]:
        """Maps `B C h w` of each batch, a random half of them of the mirrored picture."""
        for epoch, batches in epochs:
            flips = flip_coins(self.config, epoch, len(self.train.rows))
            for rows in batches:
                yield self.train.take(rows).maps(flips[rows])

    def evaluation(self, rows: Rows, mirrored: bool) -> Iterator[Inputs]:
        """Maps of the pictures or of their mirror images, `EVALUATION_BATCH` at a time."""
        parts = (self.held_out.take(rows[i : i + EVALUATION_BATCH]) for i in range(0, len(rows), EVALUATION_BATCH))
        return (part.maps(np.full(len(part.rows), mirrored)) for part in parts)


@dataclass(frozen=True)
class PictureSource:
    """Pictures, decoded and augmented by worker processes."""

    config: ExperimentConfig
    train: PictureFiles
    held_out: PictureFiles
    loader_workers: int

    def training(self, epochs: Iterable[Epoch]) -> Iterator[Inputs]:
        """Augmented pictures `B 3 H W` of each batch."""
        return train_loader(self.train, self.config.benchmark.images, epochs, self.config.seed, self.loader_workers)

    def evaluation(self, rows: Rows, mirrored: bool) -> Iterator[Inputs]:
        """Pictures or their mirror images, resized and cropped in the middle, `EVALUATION_BATCH` at a time."""
        images = self.config.benchmark.images
        batches = evaluation_loader(self.held_out.take(rows), images, EVALUATION_BATCH, self.loader_workers)
        return (batch.flip(3) if mirrored else batch for batch in batches)


Source = MapSource | PictureSource


def cached_maps(
    config: ExperimentConfig,
    data: TuneData | FinalData,
    cache_root: Path,
    device: torch.device,
    progress: Progress,
    levels: Sequence[Level] | None = None,
) -> tuple[CachedMaps, CachedMaps]:
    """Maps of the training and of the evaluation images, of the model's levels or of `levels`.

    One cache holds all trainable images of seen classes, a second the test images; `tune` opens the first alone.
    """
    images, backbone, wanted = config.benchmark.images, config.model.backbone, levels or levels_of(config.model)

    def cache(of: Images, flip: bool) -> CachedMaps:
        return ensure_cache(cache_root, of, images, backbone, wanted, flip=flip, device=device, progress=progress)

    pool, evaluation = trainable_images(data), evaluation_images(data)
    pool_maps = cache(pool, images.flip or config.mirror_scores)
    train = pool_maps.take(rows_of(data.train, pool))
    if isinstance(data, FinalData):
        return train, cache(evaluation, config.mirror_scores)
    return train, pool_maps.take(rows_of(evaluation, pool))


def picture_files(config: ExperimentConfig, data: TuneData | FinalData) -> tuple[PictureFiles, PictureFiles]:
    """Pictures of the training and of the evaluation images."""
    images = config.benchmark.images
    return (
        PictureFiles(data.train, side_for_training(images)),
        PictureFiles(evaluation_images(data), side_for_evaluation(images)),
    )


def trainable_images(data: TuneData | FinalData) -> Images:
    """All images of seen classes that either split may train on, sorted by id."""
    pool = data.train if isinstance(data, FinalData) else data.train.followed_by(evaluation_images(data))
    return pool.take(np.argsort(pool.ids))


def rows_of(images: Images, among: Images) -> Int[np.ndarray, " N"]:
    """Rows of some images among others."""
    order = np.argsort(among.ids)
    return order[np.searchsorted(among.ids, images.ids, sorter=order)]


def flip_coins(config: ExperimentConfig, epoch: int, count: int) -> Bool[np.ndarray, " N"]:
    """Mirrored training images of an epoch, a pure function of seed and epoch."""
    if not config.benchmark.images.flip:
        return np.zeros(count, dtype=bool)
    return np.random.default_rng([config.seed, epoch, 0, FLIP_STREAM]).random(count) < 0.5
