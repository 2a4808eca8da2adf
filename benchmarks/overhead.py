"""Cost of Ray Train and MLflow: steady epochs of `train` against the same epochs in a plain loop, each in a process of its own.

The plain loop trains and evaluates as a `tune` run does, without Ray, checkpoints or tracking. Each round runs both, one after the other, and
every second round in the other order; the first epoch of each does not count. A ratio is that of the two medians of a round. Tracking goes
to a temporary database. Needs three epochs or more; four rounds with epochs of ten seconds or more give steady ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks import measure
from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.config.identity import REPOSITORY


def main() -> None:
    """Times both in alternating rounds, then a cached answer."""
    parser = measure.experiment_parser(__doc__, rounds=4)
    parser.add_argument("--free-cores", type=int, default=1, help="cores that neither of the two uses (%(default)s)")
    arguments = parser.parse_args()
    config = measure.experiment_of(arguments).model_copy(update={"seed": 0})
    if config.schedule.epochs < 3:
        raise UserError("too few epochs to time", "schedule.epochs", "set schedule.epochs=3 or more")
    cores = len(os.sched_getaffinity(0))
    threads = cores - arguments.free_cores
    if threads < 1:
        raise UserError(f"{cores} cores less {arguments.free_cores} leave none", "--free-cores", "leave fewer free")
    started: dict[str, list[float]] = {"plain loop": [], "pipeline": []}
    training: dict[str, list[float]] = {"plain loop": [], "pipeline": []}

    def steady(kind: str, start: float, epochs: list[Epoch]) -> float:
        started[kind].append(epochs[0].end - start)
        training[kind].append(statistics.median(one.training for one in epochs[1:]))
        return statistics.median(after.end - before.end for before, after in pairwise(epochs))

    def plain() -> float:
        start = time.time()
        # A new interpreter each time, as the pipeline's rank is.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            done = processes.submit(train_plainly, config, arguments.data_root, threads).result()
        return steady("plain loop", start, done)

    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        storages = [Path(folder, f"runs-{number}") for number in range(arguments.rounds)]
        rounds = iter(storages)

        def pipeline() -> float:
            storage, start = next(rounds), time.time()
            run(*train_command(arguments, threads, storage), "--force")
            return steady("pipeline", start, recorded_epochs(storage))

        epochs = measure.alternate({"plain loop": plain, "pipeline": pipeline}, arguments.rounds)
        known = train_command(arguments, threads, storages[-1])
        cached = [measure.seconds_of(lambda: run(*known)) for _ in range(3)]
    measure.show(
        "overhead",
        [
            measure.ratio("pipeline / plain loop, seconds per epoch", epochs["pipeline"], epochs["plain loop"]),
            *(measure.spread(f"{kind}: steady epoch", found, "s") for kind, found in epochs.items()),
            *(measure.spread(f"{kind}: training within it", found, "s") for kind, found in training.items()),
            *(
                measure.spread(f"{kind}: from its start to the end of epoch 1", first, "s")
                for kind, first in started.items()
            ),
            measure.spread("pipeline: a cached answer of `train`", cached, "s"),
        ],
        "torch ray mlflow",
        epochs=config.schedule.epochs,
        threads=threads,
        free_cores=arguments.free_cores,
    )


class Epoch(NamedTuple):
    """One epoch: its end in seconds since 1970, and the seconds of its training."""

    end: float
    training: float


def train_plainly(config: ExperimentConfig, data_root: Path, threads: int) -> list[Epoch]:
    """Trains and evaluates every epoch in this process."""
    import torch

    from mgmrn.engine import train_epoch

    torch.set_num_threads(threads)
    training = measure.open_training(config, data_root)
    epochs = []
    for epoch in range(config.schedule.epochs):
        stats = train_epoch(training.trainer, training.feed.train_batches(epoch))
        training.evaluate()
        epochs.append(Epoch(time.time(), stats.seconds))
    return epochs


def train_command(arguments: argparse.Namespace, threads: int, storage: Path) -> list[str]:
    """Words of the `train` command that trains the same; its database lies beside its storage."""
    changes = [word for change in arguments.set for word in ("--set", change)]
    where = ["--data-root", str(arguments.data_root), "--storage", str(storage)]
    where += ["--tracking-uri", f"sqlite:///{storage.parent / 'mlflow.db'}"]
    how = ["--split", "tune", "--seeds", "0", "--workers", "1", "--cpus-per-worker", str(threads), "--json"]
    return ["train", arguments.experiment, *changes, *how, *where]


def run(*words: str) -> None:
    """Runs `python -m pipeline WORDS`. Raises UserError if it fails, with the last line that it printed."""
    paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise UserError(
            f"the command that is measured failed: {last}", " ".join(words[:2]), "run it by itself to see more"
        )


def recorded_epochs(storage: Path) -> list[Epoch]:
    """Epochs of all runs in a storage by their ends, by the clocks of their ranks."""
    metrics = (one for spool in measure.spools(storage) for one in spool.epochs().values())
    return sorted(Epoch(one["moment"], one["perf/epoch_s"]) for one in metrics if "moment" in one)


if __name__ == "__main__":
    measure.run_script(main)
