"""`bench data`: pictures decoded and augmented per second against pictures that a training step takes, and what a step waits for.

The loader is timed alone, the step alone on pictures that are ready, and both together as they train: the share of that time in which the
step waited is the wait fraction. On a CPU they share the cores.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from mgmrn.config import ExperimentConfig
from mgmrn.data.splits import load_tune
from mgmrn.engine import EpochStats, build_trainer, train_epoch
from mgmrn.errors import UserError
from mgmrn.feed import Share, open_feed
from mgmrn.memory import keep_freed_memory
from mgmrn.model.network import levels_of
from pipeline.bench.report import BenchReport, environment, in_turn, rounds_ratio, spread
from pipeline.compose import resolve_weights

BATCHES = 4


def run(config: ExperimentConfig, data_root: Path, cache_root: Path, loader_workers: int, repeats: int) -> BenchReport:
    """Times loader, step and both.

    Args:
        config: an experiment that trains on pictures.
        data_root: folder of the benchmarks.
        cache_root: folder of cached features; nothing is written there.
        loader_workers: processes that decode; 0: a thread beside the step, as training on CPUs does.
        repeats: rounds of `BATCHES` batches.

    Raises:
        UserError: for a config that trains on cached features, or a broken data set.
    """
    if config.cache_features:
        raise UserError(
            "the experiment decodes no pictures while it trains", "cache_features", "set cache_features=false"
        )
    keep_freed_memory()
    config = resolve_weights(config, data_root.resolve())
    data = load_tune(data_root, config.benchmark)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    feed = open_feed(config, data, cache_root, Share(), device, loader_workers)
    trainer = build_trainer(
        feed.network,
        torch.from_numpy(data.classes.attributes[data.classes.seen_ids]),
        config,
        levels=levels_of(config.model),
        global_batch=feed.global_batch,
        # The schedule must reach over all rounds, and over those that do not count.
        steps_per_epoch=max(feed.steps_per_epoch, 2 * BATCHES * (repeats + 1)),
        device=device,
    )
    ready = list(islice(feed.train_batches(0), BATCHES))
    together: list[EpochStats] = []
    works = {
        "loader alone": lambda: list(islice(feed.train_batches(0), BATCHES)),
        "step alone": lambda: train_epoch(trainer, ready),
        "both": lambda: together.append(train_epoch(trainer, islice(feed.train_batches(0), BATCHES))),
    }
    in_turn(works, 1)
    together.clear()
    seconds = in_turn(works, repeats)
    pictures = sum(len(batch.ids) for batch in ready)
    rates = [spread(f"{name}: pictures", [pictures / s for s in found], "1/s") for name, found in seconds.items()]
    waits = spread("both: waited for pictures", [100 * one.wait_seconds / one.seconds for one in together], "%")
    ratio = rounds_ratio("loader alone / step alone, pictures/s", seconds["step alone"], seconds["loader alone"])
    notes = (
        f"Batches of {feed.global_batch} pictures of {config.benchmark.name} at {config.benchmark.images.size}², {device.type}, "
        f"{loader_workers} loader processes, {torch.get_num_threads()} CPU threads; each round starts its loader anew.",
    )
    ratios = {ratio.name: ratio.median, "wait fraction": waits.median / 100}
    return BenchReport("data", environment(("torch", "torchvision")), (ratio, *rates, waits), ratios, notes)
