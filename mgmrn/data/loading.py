"""Batches of pictures as tensors, decoded and augmented ahead of the step that takes them.

An augmentation is a pure function of run seed, epoch and image id: an exact resume needs no state, and the number of
workers changes nothing. B images of a batch, N of a split, M of them chosen, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mgmrn.config import ImageConfig
from mgmrn.data.episodes import Epoch
from mgmrn.data.images import Pixels, for_evaluation, for_training
from mgmrn.data.pictures import Picture, read_picture
from mgmrn.data.splits import Images
from mgmrn.errors import UserError

T = TypeVar("T")

AUGMENTATION_STREAM = 2
"""Separates the random numbers of augmentation from those of sampling, which share seed and epoch."""


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that are decoded each time."""

    images: Images
    at_least: int
    """Least number of pixels of the shorter side; see `read_picture`."""

    @property
    def ids(self) -> Int[np.ndarray, " N"]:
        """Positions in the benchmark's image list."""
        return self.images.ids

    def picture(self, row: int) -> Picture:
        """One picture. Raises UserError when it cannot be decoded."""
        return read_picture(self.images.path(row), at_least=self.at_least)

    def take(self, rows: Int[np.ndarray, " M"]) -> PictureFiles:
        """Some of the pictures, in the order of `rows`."""
        return PictureFiles(self.images.take(rows), self.at_least)


def train_loader(
    pictures: PictureFiles, config: ImageConfig, epochs: Iterable[Epoch], seed: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """The augmented pictures of each batch of some epochs, one epoch after the other.

    `workers` processes decode over all epochs; 0 decodes in the caller's process.
    """
    keys = ([(epoch, row) for row in rows.tolist()] for epoch, batches in epochs for rows in batches)
    return _load(_Prepared(partial(_augmented, pictures, config, seed)), keys, workers)


def evaluation_loader(
    pictures: PictureFiles, config: ImageConfig, batch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """All pictures in order, in batches `B 3 H W`; the last one may be smaller."""
    rows = range(len(pictures.ids))
    batches = [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return _load(_Prepared(partial(_as_evaluated, pictures, config)), batches, workers)


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items in order, each computed in a thread while the caller uses the one before.

    An exception is raised in place of its item.
    """
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


class _Prepared(Dataset[Item]):
    """Pictures that a function prepares; its errors take the place of pictures."""

    def __init__(self, prepare: Callable[[Any], Pixels]) -> None:
        self._prepare = prepare

    def __getitem__(self, key: Any) -> Item:
        try:
            return self._prepare(key)
        except UserError as error:
            return error


def _augmented(pictures: PictureFiles, config: ImageConfig, seed: int, key: tuple[int, int]) -> Pixels:
    epoch, row = key
    rng = np.random.default_rng([seed, epoch, int(pictures.ids[row]), AUGMENTATION_STREAM])
    return for_training(pictures.picture(row), config, rng)


def _as_evaluated(pictures: PictureFiles, config: ImageConfig, row: int) -> Pixels:
    return for_evaluation(pictures.picture(row), config)


def _load(pictures: Dataset[Item], batches: Iterable[list[Any]], workers: int) -> Iterator[Tensor]:
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
