"""`bench overhead`: what the pipeline costs besides the training: per epoch, before the first step, and for an answer that is known.

The same epochs are trained in a plain loop (`plain_loop`) and by `train` with Ray Train, checkpoints, spool and MLflow, each in a process of
its own. From the first epoch's end on, which does not count, the two take turns of some seconds, so that what befalls the machine befalls
both. Everything tracked goes to a database that is thrown away.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.bench.fresh_process import FreshProcess, printed_by
from pipeline.bench.report import BenchReport, Timing, environment, rounds_ratio, seconds_of, spread
from pipeline.bench.spec import StretchSpec, TrainingSpec
from pipeline.bench.turns import TURN_SECONDS, run_until, seconds_between, take_turns
from pipeline.console import say
from pipeline.tracking.spool import Spool
from pipeline.train.cluster import available_cpus


@dataclass(frozen=True)
class OverheadRequest:
    """What is trained."""

    config: ExperimentConfig
    """For the plain loop; `arguments` name the same for the command line."""
    arguments: tuple[str, ...]
    data_root: Path
    cache_root: Path
    threads: int
    """CPUs of the worker, and threads of the plain loop."""
    repeats: int


def run(request: OverheadRequest) -> BenchReport:
    """Times both, start-up, `--help` and a cached answer.

    Raises:
        UserError: when the experiment trains fewer than three epochs, or a command fails, with what it wrote.
    """
    if request.config.schedule.epochs < 3:
        raise UserError("too few epochs to time", "schedule.epochs", "set schedule.epochs=3 or more")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = _Overhead(request, Path(folder))
        plain: list[float] = []
        full: list[float] = []
        for number in range(request.repeats):
            epochs = bench.epochs(f"runs-{number}")
            plain.append(median(epochs.plain))
            full.append(median(epochs.full))
            say(f"round {number + 1} of {request.repeats}: plain {plain[-1]:.3g} s, pipeline {full[-1]:.3g} s an epoch")
        phases = [bench.startup() for _ in range(request.repeats)]
        answers = [
            spread("a cached answer of `train`", [bench.cached() for _ in range(request.repeats)], "s"),
            spread("`--help`", [bench.help() for _ in range(request.repeats)], "s"),
        ]
    ratio = rounds_ratio("pipeline / plain loop, seconds an epoch", full, plain)
    both = (spread("plain loop: epoch", plain, "s"), spread("pipeline: epoch", full, "s"))
    start = [spread(f"start-up, {name}", [one[name] for one in phases], "s") for name in phases[0]]
    whole = spread("start-up", [sum(one.values()) for one in phases], "s")
    notes = (
        f"{request.config.schedule.epochs} epochs of {request.config.benchmark.name} a round, of which the first does not count, "
        f"in turns of {TURN_SECONDS:g} s; "
        f"one worker with {request.threads} of {available_cpus()} CPUs.",
    )
    results: tuple[Timing, ...] = (ratio, *both, whole, *start, *answers)
    return BenchReport("overhead", environment(("torch", "ray", "mlflow")), results, {ratio.name: ratio.median}, notes)


@dataclass(frozen=True)
class _Epochs:
    """Seconds of each epoch but the first."""

    plain: list[float]
    full: list[float]


def _moments_printed(plain: FreshProcess) -> list[float]:
    """The beginning and the end of each epoch of the plain loop."""
    return [float(line) for line in plain.printed_so_far().splitlines(keepends=True) if line.endswith("\n")]


class _Overhead:
    """The commands, with their files in a folder that is thrown away.

    Args:
        request: what is trained.
        folder: where it may write.
    """

    def __init__(self, request: OverheadRequest, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._spec = TrainingSpec(
            config=request.config.model_copy(update={"seed": 0}),
            data_root=request.data_root.resolve(),
            cache_root=request.cache_root,
            threads=request.threads,
        )

    def epochs(self, storage: str) -> _Epochs:
        """Trains both ways, in turns from the first epoch's end on.

        Args:
            storage: a new folder's name, for the pipeline's runs.
        """
        with FreshProcess("-m", "pipeline.bench.plain_loop", self._spec.model_dump_json()) as plain:
            # The plain loop fills the feature cache, where there is one.
            run_until(plain, lambda: len(_moments_printed(plain)) > 1)
            with FreshProcess(*self._train(storage), "--force") as full:
                with plain.halted():
                    run_until(full, lambda: len(self._moments_noted(storage)) > 0)
                take_turns(full, plain)
                return _Epochs(
                    seconds_between(_moments_printed(plain)[1:], plain.halts),
                    seconds_between(self._moments_noted(storage), full.halts),
                )

    def _moments_noted(self, storage: str) -> list[float]:
        """The end of each epoch, by the rank's own clock: the spool is written when the controller asks."""
        spools = self._folder.glob(f"{storage}/*/spool.jsonl")
        entries = (entry for spool in spools for entry in Spool(spool).read())
        return [entry.content["metrics"]["moment"] for entry in entries if entry.kind == "metrics"]

    def cached(self) -> float:
        """Seconds of a command whose run is known."""
        return seconds_of(lambda: printed_by(*self._train("runs-0")))

    def help(self) -> float:
        """Seconds of a command that only says what there is."""
        return seconds_of(lambda: printed_by("-m", "pipeline", "--help"))

    def startup(self) -> dict[str, float]:
        """Seconds of every phase up to the first step."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            spec = StretchSpec(**dict(self._spec), batches=1, answer=Path(folder) / "answer.json")
            uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
            told = printed_by("-m", "pipeline.bench.startup", spec.model_dump_json(), uri, folder, str(time.time()))
        phases: dict[str, float] = json.loads(told)
        return phases

    def _train(self, storage: str) -> tuple[str, ...]:
        folder = self._folder
        where = ("--storage", str(folder / storage), "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}")
        split = ("--split", "tune", "--seeds", "0", "--cpus-per-worker", str(self._spec.threads), "--json")
        return ("-m", "pipeline", "train", *self._request.arguments, *split, *where)
