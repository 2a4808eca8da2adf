"""Which images make each global batch, and which of them are a rank's.

A global batch depends on the run's seed, the epoch and the step alone. Ranks cut it into contiguous shares of nearly equal size, so every
number of ranks trains on the same batches, and a resumed run goes on with the batch that would have come.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mgmrn.errors import UserError

EPISODE_STREAM = 1
"""Keeps the random numbers of episodes apart from those of augmentation, which share seed and epoch."""

Rows = Int[np.ndarray, " _"]
Epoch = tuple[int, list[Rows]]
"""Its number, and its batches."""


class PlainBatches:
    """Every image once an epoch, shuffled; the last incomplete batch is dropped.

    Args:
        count: training images.
        batch: images of a global batch.
        seed: of the run.

    Raises:
        UserError: when there are fewer images than one batch takes.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < batch:
            raise UserError(
                f"a batch of {batch} images was asked for, but there are {count} to train on", "sampling.batch"
            )
        self.global_batch = batch
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count // self.global_batch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Rows]:
        """Global batches of an epoch, from `start_step` on."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        for step in range(start_step, len(self)):
            yield order[step * self.global_batch : (step + 1) * self.global_batch]

    def shard(self, epoch: int, rank: int, world_size: int, start_step: int = 0) -> Iterator[Rows]:
        """One rank's share of each global batch."""
        return _shares(self.epoch(epoch, start_step), self.global_batch, rank, world_size)


class EpisodicBatches:
    """Episodes of `ways` classes × `shots` distinct images.

    Args:
        labels: class of each training image.
        ways: classes of an episode.
        shots: images of each; a class with fewer is never drawn.
        episodes: of an epoch.
        seed: of the run.

    Raises:
        UserError: when fewer than `ways` classes have `shots` images.
    """

    def __init__(self, labels: Int[np.ndarray, " N"], ways: int, shots: int, episodes: int, seed: int) -> None:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._members = [rows for rows in members if len(rows) >= shots]
        if len(self._members) < ways:
            raise UserError(
                f"episodes of {ways} classes × {shots} images were asked for, but {len(self._members)} classes have {shots} images",
                "sampling.ways",
                "lower sampling.ways or sampling.shots",
            )
        self.global_batch = ways * shots
        self._ways, self._shots, self._episodes, self._seed = ways, shots, episodes, seed

    def __len__(self) -> int:
        return self._episodes

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Rows]:
        """Episodes of an epoch, from `start_step` on; images of one class stand together."""
        for step in range(start_step, self._episodes):
            rng = np.random.default_rng([self._seed, epoch, step, EPISODE_STREAM])
            chosen = rng.choice(len(self._members), self._ways, replace=False)
            yield np.concatenate([rng.choice(self._members[i], self._shots, replace=False) for i in chosen])

    def shard(self, epoch: int, rank: int, world_size: int, start_step: int = 0) -> Iterator[Rows]:
        """One rank's share of each episode."""
        return _shares(self.epoch(epoch, start_step), self.global_batch, rank, world_size)


def eval_shard(count: int, rank: int, world_size: int) -> Rows:
    """One rank's contiguous share of `count` images: together the shares are all images once, in order, without padding."""
    start, stop = (count * r // world_size for r in (rank, rank + 1))
    return np.arange(start, stop)


def _shares(batches: Iterator[Rows], global_batch: int, rank: int, world_size: int) -> Iterator[Rows]:
    if world_size > global_batch:
        raise UserError(
            f"{world_size} workers cannot share a global batch of {global_batch} images",
            "sampling",
            "use fewer workers or a larger batch",
        )
    share = eval_shard(global_batch, rank, world_size)
    return (batch[share[0] : share[-1] + 1] for batch in batches)
