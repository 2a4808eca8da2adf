"""`bench data`: pictures decoded and augmented per second against pictures that a training step takes, and what a step waits for.

The loader is timed alone, from the files and from a packed store, the step alone on pictures that are ready, and both together as they train:
the share of that time in which the step waited is the wait fraction. On a CPU they share the cores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mgmrn.config import ExperimentConfig
from mgmrn.engine import EpochStats, train_epoch
from mgmrn.errors import UserError
from mgmrn.feed import Share, open_feed
from pipeline.bench.report import BenchReport, environment, in_turn, rounds_ratio, spread
from pipeline.bench.stretch import open_stretch

BATCHES = 8
"""Of a round, whose first one is waited for; an epoch has several times as many."""


def run(config: ExperimentConfig, data_root: Path, cache_root: Path, loader_workers: int, repeats: int) -> BenchReport:
    """Times loader, step and both.

    Args:
        config: an experiment that trains on pictures.
        data_root: folder of the benchmarks.
        cache_root: folder of caches; the packed pictures are written there.
        loader_workers: processes that decode; 0: a thread beside the step, as training on CPUs does.
        repeats: rounds of `BATCHES` batches.

    Raises:
        UserError: for a config that trains on cached features, or a broken data set.
    """
    if config.cache_features:
        raise UserError(
            "the experiment decodes no pictures while it trains", "cache_features", "set cache_features=false"
        )
    config = config.model_copy(update={"cache_pictures": False})
    # The schedule must reach over all rounds, and over those that do not count.
    steps = 2 * BATCHES * (repeats + 1)
    stretch = open_stretch(config, data_root, cache_root, steps=steps, loader_workers=loader_workers)
    packing = stretch.config.model_copy(update={"cache_pictures": True})
    packed = replace(
        stretch, feed=open_feed(packing, stretch.data, cache_root, Share(), stretch.device, loader_workers)
    )
    ready = list(stretch.batches(BATCHES))
    together: list[EpochStats] = []
    works = {
        "loader alone": lambda: list(stretch.batches(BATCHES)),
        "packed loader alone": lambda: list(packed.batches(BATCHES)),
        "step alone": lambda: train_epoch(stretch.trainer, ready),
        "both": lambda: together.append(stretch.train(BATCHES)),
    }
    in_turn(works, 1)
    together.clear()
    seconds = in_turn(works, repeats)
    pictures = sum(len(batch.ids) for batch in ready)
    rates = [spread(f"{name}: pictures", [pictures / s for s in found], "1/s") for name, found in seconds.items()]
    waits = spread("both: waited for pictures", [100 * one.wait_seconds / one.seconds for one in together], "%")
    against = [
        rounds_ratio(f"{name} / {other}, pictures/s", seconds[other], seconds[name])
        for name, other in (("loader alone", "step alone"), ("packed loader alone", "loader alone"))
    ]
    batch, size, cpus = stretch.feed.global_batch, config.benchmark.images.size, torch.get_num_threads()
    notes = (
        f"Batches of {batch} pictures of {config.benchmark.name} at {size}², {stretch.device.type}, {loader_workers} loader processes, "
        f"{cpus} CPU threads; each round starts its loader anew.",
    )
    ratios = {ratio.name: ratio.median for ratio in against} | {"wait fraction": waits.median / 100}
    return BenchReport("data", environment(("torch", "torchvision")), (*against, *rates, waits), ratios, notes)
