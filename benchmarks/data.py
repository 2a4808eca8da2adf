"""Sources of training: pictures decoded from files, and cached maps (`cache_features`).

For each source: the rate of its loader alone, of the training step when batches are ready, and of both together as they train, with
the share of that time in which the step waited. Cached maps are left out where the experiment trains its backbone. On a CPU loader and step
share the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import measure
from mgmrn.engine import Batch, EpochStats, train_epoch


def main() -> None:
    """Times loader, step and both in alternating rounds."""
    parser = measure.experiment_parser(__doc__, rounds=5)
    parser.add_argument(
        "--loader-workers", type=int, default=0, help="processes that decode; 0: a thread (%(default)s)"
    )
    parser.add_argument("--batches", type=int, default=8, help="batches of a round (%(default)s)")
    arguments = parser.parse_args()
    config, batches = measure.experiment_of(arguments), arguments.batches
    chosen = ["files", "cached maps"] if config.cache_features else ["files"]
    trained: dict[str, list[EpochStats]] = {name: [] for name in chosen}
    works: dict[str, Callable[[], object]] = {}
    for name in chosen:
        training = measure.open_training(
            config.model_copy(update={"cache_features": name == "cached maps"}),
            arguments.data_root,
            steps=2 * batches * (arguments.rounds + 1),
            loader_workers=arguments.loader_workers,
        )
        works[f"{name}: loader alone"] = partial(load, training, batches)
        works[f"{name}: step alone"] = partial(train_epoch, training.trainer, load(training, batches))
        works[f"{name}: both"] = partial(train, training, batches, trained[name])
    for work in works.values():  # The first calls pay for allocations.
        work()
    for stats in trained.values():
        stats.clear()
    seconds = measure.alternate_seconds(works, arguments.rounds)
    images = batches * training.feed.global_batch
    rates = [measure.spread(f"{name}, images", [images / s for s in found], "1/s") for name, found in seconds.items()]
    waits = [
        measure.spread(f"{name}: waited", [100 * one.wait_seconds / one.seconds for one in stats], "%")
        for name, stats in trained.items()
    ]
    pairs = [("files: loader alone", "files: step alone")]
    if "cached maps" in chosen:
        pairs += [("cached maps: loader alone", "cached maps: step alone"), ("cached maps: both", "files: both")]
    faster = [measure.ratio(f"{a} / {b}, images/s", seconds[b], seconds[a]) for a, b in pairs]
    measure.show(
        "data",
        [*faster, *rates, *waits],
        "torch torchvision",
        {one.name: one.median / 100 for one in waits},
        pictures=f"{config.benchmark.name} at {config.benchmark.images.size}², batches of {training.feed.global_batch}",
        backbone=config.model.backbone.name,
        device=training.device.type,
        threads=torch.get_num_threads(),
    )


def load(training: measure.Training, batches: int) -> list[Batch]:
    """Takes batches without training on them; each call starts the loader at the first epoch."""
    return list(training.batches(batches))


def train(training: measure.Training, batches: int, stats: list[EpochStats]) -> None:
    """Trains on batches as they are loaded and keeps the statistics."""
    stats.append(train_epoch(training.trainer, training.batches(batches)))


if __name__ == "__main__":
    measure.run_script(main)
