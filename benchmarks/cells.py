"""Cells of a grid an hour: by `ablate`, and by a bare loop over the same cells, as many at once, in turns.

The grid is a slim `cub100` on cached maps: two variants, each with `--seeds` seeds; a cell is a `tune` and a `final` run. The bare loop has
one process a slot, which reads data, trains and evaluates, on `tune` after every epoch and on `final` once, without Ray, checkpoints and
tracking. Caches are filled before. `ablate` tracks to a temporary database. Efficiency is the time of the bare loop relative to that of
`ablate`. The other figures are seconds of a slot for each run, and their sum is the time of the command times slots over runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks import measure
from benchmarks.overhead import run
from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError

GRID = """\
base: cub100
base_name: slim
fixed: {{model.width: 64, model.decoder.attention_width: 64, model.granularity.reduce: before, schedule.epochs: {epochs}}}
variants:
  no_agreement: {{loss.agreement: 0}}
seeds: {seeds}
"""
TRAINED = ("training", "evaluation")

Seconds = Mapping[str, float]
"""Part of the work → seconds."""


def main() -> None:
    """Runs the cells both ways in alternating rounds."""
    parser = measure.data_parser(__doc__, rounds=2)
    parser.add_argument("--seeds", type=int, default=12, help="seeds of each of the two variants (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the schedule (%(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="cells at once (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a cell (%(default)s)")
    arguments = parser.parse_args()
    slots, data_root, rounds = arguments.slots, arguments.data_root.resolve(), arguments.rounds
    spent: dict[str, list[Seconds]] = {"bare": [], "ablate": []}

    def processes(number: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(number, mp_context=get_context("spawn"))

    with tempfile.TemporaryDirectory(prefix="cells-") as folder:
        grid = Path(folder, "slim.yaml")
        grid.write_text(GRID.format(epochs=arguments.epochs, seeds=list(range(arguments.seeds))))
        configs = configs_of(str(grid), data_root)
        runs = 2 * len(configs)
        train = partial(train_cell, data_root=data_root, threads=arguments.threads)
        storages = (Path(folder, f"runs-{number}") for number in range(rounds))

        def shares(parts: Seconds, rest: str, wall: float) -> Seconds:
            """Seconds of each part for one run, with a name for what is in no part."""
            return {name: one / runs for name, one in {**parts, rest: slots * wall - sum(parts.values())}.items()}

        def bare() -> float:
            start = time.time()
            with processes(slots) as pool:
                done = list(pool.map(train, configs))
            parts = {name: sum(one[name] for one in done) for name in done[0]}
            wall = time.time() - start
            spent["bare"].append(shares(parts, "start and end", wall))
            return wall

        def ablate() -> float:
            storage, start = next(storages), time.time()
            how = f"--concurrency {slots} --cpus-per-worker {arguments.threads} --json".split()
            where = ("--storage", str(storage), "--data-root", str(data_root))
            run("ablate", str(grid), *how, *where, "--tracking-uri", f"sqlite:///{storage}.db")
            end = time.time()
            spent["ablate"].append(shares(recorded(storage, start, end, slots), "between runs", end - start))
            return end - start

        with processes(1) as pool:
            pool.submit(fill_caches, configs[0], data_root).result()
        seconds = measure.alternate({"bare": bare, "ablate": ablate}, rounds)
    rates = {kind: [3600 * len(configs) / one for one in found] for kind, found in seconds.items()}
    beside = [sum(one.values()) - sum(one[name] for name in (*TRAINED, "start")) for one in spent["ablate"]]
    measure.show(
        "cells",
        [
            measure.ratio("efficiency: bare / ablate, seconds", seconds["bare"], seconds["ablate"]),
            *(measure.spread(f"{kind}: cells", found, "1/h") for kind, found in rates.items()),
            *(
                measure.spread(f"{kind}: {part}, of a run", [one[part] for one in found], "s")
                for kind, found in spent.items()
                for part in found[0]
            ),
            measure.spread("ablate: all but start, training and evaluation, of a run", beside, "s"),
        ],
        "torch ray mlflow",
        cells=len(configs),
        slots=slots,
        threads=arguments.threads,
    )


def configs_of(grid: str, data_root: Path) -> list[ExperimentConfig]:
    """Config of each cell of a grid, with its seed. Raises UserError for a wrong grid, or data that are missing."""
    from pipeline.ablation.config import load_ablation
    from pipeline.ablation.grid import make_cells, make_grid

    cells = make_cells(make_grid(load_ablation(grid)), data_root)
    if missing := next((cell.missing for cell in cells if cell.tune is None), None):
        raise UserError(missing, "--data-root")
    return [cell.tune.config for cell in cells if cell.tune is not None]


def train_cell(config: ExperimentConfig, data_root: Path, threads: int) -> Seconds:
    """Trains a cell on `tune`, and on `final` for as many epochs as were best there."""
    import numpy as np
    import torch

    from mgmrn.data.splits import load_final, load_tune
    from mgmrn.engine import train_epoch

    torch.set_num_threads(threads)
    gamma, epochs = None, config.schedule.epochs
    data = trained = evaluated = 0.0
    for load in (load_tune, load_final):
        start = time.time()
        training = measure.open_training(config, data_root, load=load)
        data += time.time() - start
        results = []
        for epoch in range(epochs):
            trained += train_epoch(training.trainer, training.feed.train_batches(epoch)).seconds
            if load is load_tune or epoch + 1 == epochs:
                start = time.time()
                results.append(training.evaluate(gamma))
                evaluated += time.time() - start
        best = int(np.argmax([one.ausuc for one in results]))
        gamma, epochs = results[best].gamma, best + 1
    return {"data": data, "training": trained, "evaluation": evaluated}


def fill_caches(config: ExperimentConfig, data_root: Path) -> None:
    """Caches the maps that the cells read."""
    from mgmrn.data.splits import load_final, load_tune

    for load in (load_tune, load_final):
        measure.open_training(config, data_root, load=load)


def recorded(storage: Path, start: float, end: float, slots: int) -> Seconds:
    """Seconds of a slot in each part of a launch that began at `start` and ended at `end`, by the clocks of the runs in its storage."""
    noted = (list(spool.epochs().values()) for spool in measure.spools(storage))
    runs = [epochs for epochs in noted if epochs and "moment" in epochs[0]]  # Without the launch.

    def total(name: str, epochs: Iterable[Mapping[str, float]]) -> float:
        return sum(one[name] for one in epochs)

    parts = {"data": 0.0, "training": 0.0, "evaluation": 0.0, "checkpoints and reports": 0.0}
    begun = []
    for epochs in runs:
        first, last = epochs[0], epochs[-1]
        spent = first["perf/start_s"], total("perf/epoch_s", epochs), total("perf/evaluation_s", epochs)
        begun.append(first["moment"] - first["perf/start_s"] - first["perf/epoch_s"] - first["perf/evaluation_s"])
        for name, seconds in zip(parts, (*spent, last["moment"] - begun[-1] - sum(spent)), strict=True):
            parts[name] += seconds
    ended = max(epochs[-1]["moment"] for epochs in runs)
    return {"start": slots * (min(begun) - start), **parts, "end": slots * (end - ended)}


if __name__ == "__main__":
    measure.run_script(main)
