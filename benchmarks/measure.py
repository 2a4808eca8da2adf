"""Shared parts of the scripts: timing in alternating rounds, an experiment in training, and the JSON object that they print.

Machines are noisy, so a reader compares ratios: each is the median over rounds of the ratio within one round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.config.compose import load_experiment, resolve_weights
from pipeline.console import say
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.tracking.environment import environment, git_state

if TYPE_CHECKING:
    import torch

    from mgmrn.config import BenchmarkConfig, ExperimentConfig
    from mgmrn.data.splits import SplitData
    from mgmrn.engine import Batch, Trainer
    from mgmrn.feed import Feed
    from mgmrn.metrics import ZSLResult

KEPT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "2147483647"}
"""Settings of glibc, read when a process starts, under which tensors reuse freed memory instead of new pages."""

TIMES = "×"
"""Unit of a ratio."""


@dataclass(frozen=True)
class Timing:
    """One quantity over `n` rounds."""

    name: str
    median: float
    min: float
    max: float
    unit: str
    n: int


def spread(name: str, values: Sequence[float], unit: str) -> Timing:
    """Median, smallest and largest value of all rounds."""
    return Timing(name, statistics.median(values), min(values), max(values), unit, len(values))


def ratio(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> Timing:
    """Ratio of two quantities that were measured in the same rounds."""
    return spread(name, [above / below for above, below in zip(numerators, denominators, strict=True)], TIMES)


def spools(storage: Path) -> list[Spool]:
    """Spools of all runs below a folder."""
    return [Spool(StoragePath.parse(folder.parent)) for folder in storage.rglob("spool")]


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each function returned in each round; every second round runs backwards, so that a drift affects all alike."""
    values: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            values[name].append(works[name]())
        shown = ", ".join(f"{name} {found[-1]:.3g}" for name, found in values.items())
        say(f"round {number + 1} of {rounds}: {shown}")
    return values


def alternate_seconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind of work, as `alternate`."""
    return alternate({name: lambda work=work: seconds_of(work) for name, work in works.items()}, rounds)  # type: ignore[misc]


def compare_seconds(name: str, works: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Seconds of two kinds of work, after the ratio of the second to the first under its own name."""
    seconds = alternate_seconds(works, rounds)
    ours, plain = seconds.values()
    return [ratio(name, plain, ours), *(spread(label, found, "s") for label, found in seconds.items())]


def show(
    bench: str,
    results: Sequence[Timing],
    packages: str,
    compared: Mapping[str, float] | None = None,
    **settings: object,
) -> None:
    """Prints the JSON object on standard output and its figures as lines on standard error.

    `packages` are those whose versions matter, `compared` figures that a reader compares besides the ratios among the results, and
    `settings` sizes, threads and device.
    """
    code, host = git_state(), environment()
    described = {
        "command": " ".join(["python -m benchmarks." + bench, *sys.argv[1:]]),
        "commit": code.sha[:12] + "-dirty" * code.dirty,
        "machine": f"{platform.machine()}, {host['cpu']}, {os.cpu_count()} CPUs",
        "python": host["python"],
        **{package: version(package) for package in packages.split()},
        **settings,
    }
    for one in results:
        say(f"{one.name}: {one.median:.4g} {one.unit} ({one.min:.4g} … {one.max:.4g}, n = {one.n})")
    ratios = {one.name: one.median for one in results if one.unit == TIMES} | dict(compared or {})
    answer = {"bench": bench, "environment": described, "results": [asdict(one) for one in results], "ratios": ratios}
    sys.stdout.write(json.dumps(answer) + "\n")


def run_script(main: Callable[[], None]) -> None:
    """Runs a script under `KEPT_MEMORY`. Errors are one sentence: exit code 2 for a wrong use, 3 for too small a machine."""
    if not os.environ.keys() >= KEPT_MEMORY.keys():
        os.execve(sys.executable, sys.orig_argv, KEPT_MEMORY | os.environ)
    try:
        main()
    except (UserError, ResourceError) as error:
        say(f"error: {error}")
        sys.exit(3 if isinstance(error, ResourceError) else 2)


def parser_of(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with `--rounds`, described by a script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of all that is compared (%(default)s)")
    return parser


def data_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """`parser_of` with `--data-root`."""
    parser = parser_of(description, rounds)
    parser.add_argument(
        "--data-root", type=Path, default=places.DATA_ROOT, help="folder of the benchmarks (%(default)s)"
    )
    return parser


def experiment_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """`data_parser` with the arguments that `experiment_of` reads."""
    parser = data_parser(description, rounds)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="shipped experiment, or path of a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one value")
    return parser


def experiment_of(arguments: argparse.Namespace) -> ExperimentConfig:
    """The experiment that the arguments name. Raises UserError for a wrong config, or weights that are missing."""
    return resolve_weights(load_experiment(arguments.experiment, arguments.set).config, arguments.data_root.resolve())


@dataclass(frozen=True)
class Training:
    """An experiment that is ready to train on a split, in this process."""

    data: SplitData
    feed: Feed
    trainer: Trainer
    device: torch.device

    def batches(self, number: int) -> Iterator[Batch]:
        """The first `number` batches of an endless training."""
        return islice(chain.from_iterable(self.feed.train_batches(epoch) for epoch in count()), number)

    def evaluate(self, gamma: float | None = None) -> ZSLResult:
        """Figures on the evaluation images of the split, as a run computes them after an epoch."""
        import torch

        from mgmrn.engine import evaluate
        from mgmrn.protocol import evaluate_split

        attributes = torch.from_numpy(self.data.classes.attributes)
        network, config = self.trainer.network, self.trainer.config
        scores = evaluate(network, self.feed.evaluation_inputs(), attributes, config, self.device)[None]
        return evaluate_split(self.data, scores, gamma).result


def open_training(
    config: ExperimentConfig,
    data_root: Path,
    steps: int = 0,
    loader_workers: int = 0,
    load: Callable[[Path, BenchmarkConfig], SplitData] | None = None,
) -> Training:
    """Reads data and builds network and trainer; fills the feature cache where the experiment uses one and it is missing.

    The learning-rate schedule reaches over `steps`, if they are more than the experiment's; `load` reads the split, by default `tune`.
    Raises UserError for weights that are missing, or a broken data set.
    """
    import torch

    from mgmrn.data.splits import load_tune
    from mgmrn.device import usual_device
    from mgmrn.engine import build_trainer
    from mgmrn.feed import Feed, Share

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    device = usual_device()
    data = (load or load_tune)(data_root, config.benchmark)
    feed = Feed(config, data, places.CACHE.resolve(), Share(), device, loader_workers)
    trainer = build_trainer(
        feed.network,
        torch.from_numpy(data.classes.attributes[data.classes.seen_ids]),
        config,
        global_batch=feed.global_batch,
        steps_per_epoch=max(feed.steps_per_epoch, steps),
        device=device,
    )
    return Training(data, feed, trainer, device)
