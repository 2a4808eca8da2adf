"""Batches of pictures as tensors, decoded and augmented ahead of the step that takes them.

An augmentation is a pure function of (run seed, epoch, image id), drawn from a generator of its own: nothing to save for an exact resume,
and the same picture whatever the number of workers. B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mgmrn.config import ImageConfig
from mgmrn.data.decoded import Pictures
from mgmrn.data.episodes import Rows
from mgmrn.data.images import for_evaluation, for_training
from mgmrn.errors import UserError

AUGMENTATION_STREAM = 2
"""Keeps the random numbers of augmentation apart from those of sampling, which share seed and epoch."""


def train_loader(
    pictures: Pictures, config: ImageConfig, batches: list[Rows], seed: int, epoch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """The augmented pictures of each batch of an epoch.

    Args:
        pictures: what is trained on.
        config: size and augmentation.
        batches: rows of `pictures`, batch by batch.
        seed: of the run.
        epoch: number of the epoch.
        workers: decoding processes; 0 decodes in the caller's.
    """
    return _load(_TrainingPictures(pictures, config, seed, epoch), batches, workers)


def evaluation_loader(
    pictures: Pictures, config: ImageConfig, batch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """All pictures in their order; the last batch is as short as it is."""
    rows = np.arange(len(pictures.ids))
    return _load(
        _EvaluationPictures(pictures, config), [rows[i : i + batch] for i in range(0, len(rows), batch)], workers
    )


Item = Tensor | UserError
"""A picture, or why there is none: torch would turn an exception of a worker process into a traceback in a string."""


class _TrainingPictures(Dataset[Item]):
    def __init__(self, pictures: Pictures, config: ImageConfig, seed: int, epoch: int) -> None:
        self._pictures, self._config, self._key = pictures, config, (seed, epoch)

    def __getitem__(self, row: int) -> Item:
        rng = np.random.default_rng([*self._key, int(self._pictures.ids[row]), AUGMENTATION_STREAM])
        try:
            return for_training(self._pictures.picture(row), self._config, rng)
        except UserError as error:
            return error


class _EvaluationPictures(Dataset[Item]):
    def __init__(self, pictures: Pictures, config: ImageConfig) -> None:
        self._pictures, self._config = pictures, config

    def __getitem__(self, row: int) -> Item:
        try:
            return for_evaluation(self._pictures.picture(row), self._config)
        except UserError as error:
            return error


def _load(pictures: Dataset[Item], batches: list[Rows], workers: int) -> Iterator[Tensor]:
    loader: DataLoader[Item] = DataLoader(
        pictures,
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(items: list[Item]) -> Item:
    broken = next((item for item in items if isinstance(item, UserError)), None)
    return broken if broken is not None else default_collate(items)
