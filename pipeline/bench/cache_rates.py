"""How fast a feature cache is built, how fast it is read, and how fast the head takes what was read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgmrn.data.feature_cache import ensure_cache
from mgmrn.data.splits import Images
from mgmrn.engine import Batch, train_epoch
from mgmrn.model.network import levels_of
from pipeline.bench.report import Timing, in_turn, rounds_ratio, seconds_of, spread
from pipeline.bench.stretch import Stretch

BUILT_PICTURES = 64
BUILDS = 3
READ_BATCHES = 16
"""Of a round; an epoch may be larger than a machine's memory."""
ROUNDS = 5
STEPS = READ_BATCHES * (ROUNDS + 1)
"""That are trained here."""


@dataclass(frozen=True)
class Amount:
    """What one round moves."""

    pictures: int
    size: float
    """In bytes."""

    def rates(self, name: str, seconds: Sequence[float]) -> list[Timing]:
        """Pictures and megabytes per second."""
        return [
            spread(f"{name}: pictures", [self.pictures / s for s in seconds], "1/s"),
            spread(f"{name}: data", [self.size / 1e6 / s for s in seconds], "MB/s"),
        ]


def building(stretch: Stretch) -> list[Timing]:
    """Caches of some training pictures are made where there is none; weights are read and files written in that time."""
    images = stretch.data.train.take(np.arange(min(BUILT_PICTURES, len(stretch.data.train))))
    found = [_build(stretch, images) for _ in range(BUILDS)]
    size = found[0][1]
    return Amount(len(images), size).rates("built", [seconds for seconds, _ in found])


def reading(stretch: Stretch) -> list[Timing]:
    """Batches as training takes them, against the head's steps on batches that are there."""
    ready = list(stretch.batches(READ_BATCHES))
    amount = amount_of(ready)
    works = {
        "read": lambda: amount_of(stretch.batches(READ_BATCHES)),
        "taken by the head": lambda: train_epoch(stretch.trainer, ready),
    }
    in_turn(works, 1)
    seconds = in_turn(works, ROUNDS)
    return [
        rounds_ratio("read / taken by the head, pictures/s", seconds["taken by the head"], seconds["read"]),
        *(timing for name, found in seconds.items() for timing in amount.rates(name, found)),
    ]


def amount_of(batches: Iterable[Batch]) -> Amount:
    """Of batches of maps."""
    pictures = size = 0
    for batch in batches:
        assert isinstance(batch.inputs, dict)
        pictures += len(batch.ids)
        size += sum(maps.nbytes for maps in batch.inputs.values())
    return Amount(pictures, size)


def _build(stretch: Stretch, images: Images) -> tuple[float, int]:
    """Seconds, and bytes of the maps."""
    config = stretch.config
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        seconds = seconds_of(
            lambda: ensure_cache(
                Path(folder),
                images,
                config.benchmark.images,
                config.model.backbone,
                levels_of(config.model),
                flip=config.benchmark.images.flip,
                device=stretch.device,
            )
        )
        return seconds, sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
