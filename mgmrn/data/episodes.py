"""Images of each global batch, and each rank's share of them.

A global batch depends on the run's seed, the epoch and the step alone, and ranks cut it into contiguous shares of
nearly equal size: the number of ranks and a resume change no batch. N training images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mgmrn.errors import UserError

EPISODE_STREAM = 1
"""Separates the random numbers of episodes from those of augmentation, which share seed and epoch."""

Rows = Int[np.ndarray, " _"]
Epoch = tuple[int, list[Rows]]
"""An epoch's number and batches."""


class PlainBatches:
    """Every image once an epoch, shuffled, in complete batches. Raises UserError for fewer images than one batch."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < batch:
            message = f"a batch of {batch} images was asked for, but there are {count} to train on"
            raise UserError(message, "sampling.batch")
        self.global_batch = batch
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count // self.global_batch

    def epoch(self, epoch: int) -> Iterator[Rows]:
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        for step in range(len(self)):
            yield order[step * self.global_batch : (step + 1) * self.global_batch]


class EpisodicBatches:
    """Episodes of `ways` classes × `shots` distinct images; a class with fewer images is never drawn.

    Raises UserError when fewer than `ways` classes have `shots` images.
    """

    def __init__(self, labels: Int[np.ndarray, " N"], ways: int, shots: int, episodes: int, seed: int) -> None:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._members = [rows for rows in members if len(rows) >= shots]
        if (found := len(self._members)) < ways:
            message = f"{ways} classes × {shots} images were asked for, but {found} classes have {shots} images"
            raise UserError(f"episodes of {message}", "sampling.ways", "lower sampling.ways or sampling.shots")
        self.global_batch = ways * shots
        self._ways, self._shots, self._episodes, self._seed = ways, shots, episodes, seed

    def __len__(self) -> int:
        return self._episodes

    def epoch(self, epoch: int) -> Iterator[Rows]:
        """Episodes of an epoch; images of one class are adjacent."""
        for step in range(self._episodes):
            rng = np.random.default_rng([self._seed, epoch, step, EPISODE_STREAM])
            chosen = rng.choice(len(self._members), self._ways, replace=False)
            yield np.concatenate([rng.choice(self._members[i], self._shots, replace=False) for i in chosen])


def eval_shard(count: int, rank: int, world_size: int) -> Rows:
    """One rank's contiguous share of `count` images, without padding: the shares in order are all images once."""
    start, stop = (count * r // world_size for r in (rank, rank + 1))
    return np.arange(start, stop)


def shard(batches: PlainBatches | EpisodicBatches, epoch: int, rank: int, world_size: int) -> Iterator[Rows]:
    """One rank's share of each global batch of an epoch. Raises UserError for more ranks than images."""
    if world_size > batches.global_batch:
        message = f"{world_size} workers cannot share a global batch of {batches.global_batch} images"
        raise UserError(message, "sampling", "use fewer workers or a larger batch")
    share = eval_shard(batches.global_batch, rank, world_size)
    return (batch[share[0] : share[-1] + 1] for batch in batches.epoch(epoch))
