"""`bench cache`: what cached maps of a frozen backbone cost and gain.

An epoch on cached maps against one from pictures; the rates at which a cache is built, read, and used up by the head; what several readers
take in memory, against one; and the start of a trial, from nothing to its first step, where the cache is there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from mgmrn.model.network import levels_of
from pipeline.bench import cache_rates, cached_epoch
from pipeline.bench.report import BenchReport, Timing, environment, seconds_of, spread
from pipeline.bench.shared_pages import memory_of_readers
from pipeline.bench.spec import TrainingSpec
from pipeline.bench.stretch import Stretch, open_stretch
from pipeline.config.compose import resolve_weights

READERS = 4
STARTS = 3


def run(config: ExperimentConfig, data_root: Path, cache_root: Path) -> BenchReport:
    """Times all of it.

    Args:
        config: an experiment on cached features.
        data_root: folder of the benchmarks.
        cache_root: folder of cached features; filled where they are missing, which is not timed.

    Raises:
        UserError: for a config that caches nothing, or a broken data set.
    """
    if not config.cache_features:
        raise UserError("the experiment does not train on cached features", "cache_features", "set cache_features=true")
    data_root = data_root.resolve()
    spec = TrainingSpec(
        config=resolve_weights(config, data_root),
        data_root=data_root,
        cache_root=cache_root,
        threads=torch.get_num_threads(),
    )
    opened = partial(open_stretch, data_root=data_root, cache_root=cache_root)
    cached = opened(spec.config, steps=cached_epoch.STEPS + cache_rates.STEPS)
    pictures = opened(spec.config.model_copy(update={"cache_features": False}), steps=cached_epoch.STEPS)
    sharing = _sharing(spec)  # Before this process reads anything itself.
    results = (
        *cached_epoch.epochs_in_turn(cached, pictures),
        *cache_rates.reading(cached),
        *cache_rates.building(cached),
        *sharing,
        spread("start of a trial", [seconds_of(partial(_start, spec)) for _ in range(STARTS)], "s"),
    )
    ratios = {one.name: one.median for one in results if one.unit == "×"}
    return BenchReport("cache", environment(("torch", "torchvision")), results, ratios, (_notes(cached, spec.threads),))


def _sharing(spec: TrainingSpec) -> list[Timing]:
    alone, together = memory_of_readers(spec, 1), memory_of_readers(spec, READERS)
    return [
        spread(f"memory of {READERS} readers / of one", [together / alone], "×"),
        spread("memory of one reader", [alone], "MiB"),
        spread(f"memory of {READERS} readers", [together], "MiB"),
    ]


def _start(spec: TrainingSpec) -> None:
    """Data, network and one step, as a trial begins whose process is there."""
    open_stretch(spec.config, spec.data_root, spec.cache_root, steps=1).train(1)


def _notes(stretch: Stretch, threads: int) -> str:
    images, model = stretch.config.benchmark.images, stretch.config.model
    mirrored = "with" if images.flip else "without"
    return (
        f"{stretch.config.benchmark.name} at {images.size}², {model.backbone.name}, levels {', '.join(levels_of(model))}, {mirrored} mirror "
        f"images; {stretch.device.type}, {threads} CPU threads. What is read stands in the system's page cache. At most "
        f"{cache_rates.BUILT_PICTURES} pictures are built, weights read and files written included. Memory is that of the cache's files, each "
        "page divided among those that have it."
    )
