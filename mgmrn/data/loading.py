"""Batches of pictures as tensors, decoded and augmented ahead of the step that takes them.

An augmentation is a pure function of run seed, epoch and image id: an exact resume needs no state, and the number of
workers changes nothing. B images of a batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mgmrn.config import ImageConfig
from mgmrn.data.episodes import Epoch
from mgmrn.data.images import for_training, prepared, side_for_training
from mgmrn.data.pictures import read_picture
from mgmrn.data.splits import Images
from mgmrn.errors import UserError

T = TypeVar("T")

AUGMENTATION_STREAM = 2
"""Separates the random numbers of augmentation from those of sampling, which share seed and epoch."""


def train_loader(
    images: Images, config: ImageConfig, epochs: Iterable[Epoch], seed: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """The augmented pictures of each batch of some epochs in turn; `workers` processes decode, or the caller's with 0."""
    keys = ([(epoch, row) for row in rows.tolist()] for epoch, batches in epochs for rows in batches)
    return _load(_Prepared(images, config, seed), keys, workers)


def evaluation_loader(
    images: Images, config: ImageConfig, batch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """All pictures in order, in batches `B 3 H W`; the last one may be smaller."""
    keys = [(0, row) for row in range(len(images))]
    return _load(_Prepared(images, config, None), (keys[i : i + batch] for i in range(0, len(keys), batch)), workers)


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items, or an exception in place of one, each computed in a thread while the one before is in use."""
    source = iter(items)
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        pending = pool.submit(next, source, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, source, end)
            yield item  # type: ignore[misc]
    finally:
        # The pool's own thread may run this while it collects garbage, and cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)


Item = Tensor | UserError
"""A picture, or its error: torch would turn an exception of a worker process into a string with a traceback."""


@dataclass(frozen=True)
class _Prepared(Dataset[Item]):
    """Inputs of a network by epoch and row: augmented, or as in evaluation without a seed."""

    images: Images
    config: ImageConfig
    seed: int | None

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, row = key
        path, config = self.images.path(row), self.config
        try:
            if self.seed is None:
                return prepared(path, config)
            rng = np.random.default_rng([self.seed, epoch, int(self.images.ids[row]), AUGMENTATION_STREAM])
            return for_training(read_picture(path, at_least=side_for_training(config)), config, rng)
        except UserError as error:
            return error


def _load(pictures: _Prepared, batches: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[Tensor]:
    loader: DataLoader[Item] = DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader would draw from torch's at a moment that depends on threads and resumes.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(items: list[Item]) -> Item:
    broken = next((item for item in items if isinstance(item, UserError)), None)
    return broken if broken is not None else default_collate(items)
