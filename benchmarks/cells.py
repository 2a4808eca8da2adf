"""Cells of a grid an hour: by `ablate`, and by a bare loop over the same cells, as many at once, in turns.

The bare loop has one process a slot, which reads data, trains and evaluates, on `tune` after every epoch and on `final` once, without Ray,
checkpoints and tracking. Caches are filled before. `ablate` tracks to a temporary database. Efficiency is the time of the bare loop relative to
that of `ablate`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks import measure
from benchmarks.overhead import recorded_epochs, run
from mgmrn.config import ExperimentConfig
from pipeline import places


def main() -> None:
    """Runs the cells both ways in alternating rounds."""
    parser = measure.parser_of(__doc__, rounds=1)
    parser.add_argument("grid", metavar="GRID", help="shipped ablation, or path of a YAML file")
    parser.add_argument("--slots", type=int, default=2, help="cells at once (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a cell (%(default)s)")
    parser.add_argument(
        "--data-root", type=Path, default=places.DATA_ROOT, help="folder of the benchmarks (%(default)s)"
    )
    arguments = parser.parse_args()
    configs = configs_of(arguments.grid, arguments.data_root.resolve())
    spent: dict[str, list[Spent]] = {"bare": [], "ablate": []}

    def processes(slots: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(slots, mp_context=get_context("spawn"))

    train = partial(train_cell, data_root=arguments.data_root, threads=arguments.threads)

    def bare() -> float:
        start = time.time()
        with processes(arguments.slots) as pool:
            spent["bare"].append(added(pool.map(train, configs)))
        return time.time() - start

    with tempfile.TemporaryDirectory(prefix="cells-") as folder:
        storages = (Path(folder, f"runs-{number}") for number in range(arguments.rounds))

        def ablate() -> float:
            storage, start = next(storages), time.time()
            how = f"--concurrency {arguments.slots} --cpus-per-worker {arguments.threads} --json".split()
            where = ("--storage", str(storage), "--data-root", str(arguments.data_root))
            run("ablate", arguments.grid, *how, *where, "--tracking-uri", f"sqlite:///{storage}.db")
            seconds = time.time() - start
            spent["ablate"].append(recorded(storage, start))
            return seconds

        with processes(1) as pool:
            pool.submit(fill_caches, configs, arguments.data_root).result()
        seconds = measure.alternate({"bare": bare, "ablate": ablate}, arguments.rounds)
    slots = arguments.slots
    rates = {kind: [3600 * len(configs) / one for one in found] for kind, found in seconds.items()}
    both = zip(spent["ablate"], spent["bare"], seconds["ablate"], strict=True)
    rest = [slots * wall - ours.training - plain.evaluation for ours, plain, wall in both]
    measure.show(
        "cells",
        [
            measure.ratio("efficiency: bare / ablate, seconds", seconds["bare"], seconds["ablate"]),
            *(measure.spread(f"{kind}: cells", found, "1/h") for kind, found in rates.items()),
            *(
                measure.spread(f"{kind}: training", [one.training for one in found], "s")
                for kind, found in spent.items()
            ),
            measure.spread("bare: evaluation", [one.evaluation for one in spent["bare"]], "s"),
            measure.spread("bare: data", [one.data for one in spent["bare"]], "s"),
            measure.spread("ablate: start, to the first step", [one.data for one in spent["ablate"]], "s"),
            measure.spread(
                "ablate: all but training and evaluation, of a cell", [one / len(configs) for one in rest], "s"
            ),
        ],
        "torch ray mlflow",
        cells=len(configs),
        slots=slots,
        threads=arguments.threads,
    )


class Spent(NamedTuple):
    """Seconds of reading data, of training and of evaluating."""

    data: float
    training: float
    evaluation: float


def added(parts: Iterable[Spent]) -> Spent:
    """Sums over cells."""
    return Spent(*map(sum, zip(*parts, strict=True)))


def configs_of(grid: str, data_root: Path) -> list[ExperimentConfig]:
    """Config of each cell of a grid, with its seed.

    Raises:
        UserError: for a wrong grid, or data that are missing.
    """
    from pipeline.ablation.config import load_ablation
    from pipeline.ablation.grid import make_cells, make_grid

    cells = make_cells(make_grid(load_ablation(grid)), data_root)
    return [cell.tune.config for cell in cells if cell.tune is not None]


def train_cell(config: ExperimentConfig, data_root: Path, threads: int) -> Spent:
    """Trains a cell on `tune`, and on `final` for as many epochs as were best there."""
    import numpy as np
    import torch

    from mgmrn.data.splits import load_final, load_tune
    from mgmrn.engine import evaluate, train_epoch
    from mgmrn.protocol import evaluate_split

    torch.set_num_threads(threads)
    total, gamma, epochs = Spent(0, 0, 0), None, config.schedule.epochs
    for load in (load_tune, load_final):
        start = time.time()
        training = measure.open_training(config, data_root, load=load)
        attributes = torch.from_numpy(training.data.classes.attributes)
        data, trained, evaluated, results = time.time() - start, 0.0, 0.0, []
        for epoch in range(epochs):
            trained += train_epoch(training.trainer, training.feed.train_batches(epoch)).seconds
            if load is load_tune or epoch + 1 == epochs:
                start = time.time()
                inputs, network = training.feed.evaluation_inputs(), training.trainer.network
                scores = evaluate(network, inputs, attributes, config, training.device)[None]
                results.append(evaluate_split(training.data, scores, gamma).result)
                evaluated += time.time() - start
        best = int(np.argmax([one.ausuc for one in results]))
        gamma, epochs = results[best].gamma, best + 1
        total = added([total, Spent(data, trained, evaluated)])
    return total


def fill_caches(configs: Iterable[ExperimentConfig], data_root: Path) -> None:
    """Caches the maps that the cells read."""
    from mgmrn.data.splits import load_final, load_tune

    for config in configs:
        for load in (load_tune, load_final):
            measure.open_training(config, data_root, load=load)


def recorded(storage: Path, start: float) -> Spent:
    """Seconds of training of all runs in a storage, and of the start until the first of them had begun to train."""
    epochs = recorded_epochs(storage)
    begun = min(one.end - one.training for one in epochs)
    return Spent(begun - start, sum(one.training for one in epochs), 0)


if __name__ == "__main__":
    measure.run_script(main)
