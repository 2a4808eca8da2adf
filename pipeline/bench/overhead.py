"""`bench overhead`: what the pipeline costs besides the training: per epoch, before the first step, and for an answer that is known.

The same epochs are trained in a plain loop (`plain_loop`) and by `train` with Ray Train, checkpoints, spool and MLflow, each in a process
of its own, in turn. The first epoch of each does not count. Everything tracked goes to a database that is thrown away.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.bench.fresh_process import printed_by
from pipeline.bench.report import BenchReport, Timing, environment, rounds_ratio, seconds_of, spread
from pipeline.bench.spec import StretchSpec, TrainingSpec
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
        bench.plain()  # Fills the feature cache, where there is one.
        plain: list[float] = []
        full: list[float] = []
        for turn in range(request.repeats):
            plain.append(bench.plain())
            full.append(bench.full())
            say(f"round {turn + 1} of {request.repeats}: plain {plain[-1]:.3g} s, pipeline {full[-1]:.3g} s an epoch")
        phases = [bench.startup() for _ in range(request.repeats)]
        answers = [
            spread("a cached answer of `train`", [bench.cached() for _ in range(request.repeats)], "s"),
            spread("`--help`", [bench.help() for _ in range(request.repeats)], "s"),
        ]
    ratio = rounds_ratio("pipeline / plain loop, seconds an epoch", full, plain)
    epochs = [spread("plain loop: epoch", plain, "s"), spread("pipeline: epoch", full, "s")]
    start = [spread(f"start-up, {name}", [one[name] for one in phases], "s") for name in phases[0]]
    whole = spread("start-up", [sum(one.values()) for one in phases], "s")
    notes = (
        f"{request.config.schedule.epochs} epochs of {request.config.benchmark.name}, of which the first does not count; "
        f"one worker with {request.threads} of {available_cpus()} CPUs.",
    )
    results: tuple[Timing, ...] = (ratio, *epochs, whole, *start, *answers)
    return BenchReport("overhead", environment(("torch", "ray", "mlflow")), results, {ratio.name: ratio.median}, notes)


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

    def plain(self) -> float:
        """Median seconds of an epoch, without the first."""
        return median(json.loads(printed_by("-m", "pipeline.bench.plain_loop", self._spec.model_dump_json()))[1:])

    def full(self) -> float:
        """Median seconds from one epoch's end to the next, by the rank's own clock: the spool is written when the controller asks."""
        printed_by(*self._train(), "--force")
        (spool,) = self._folder.glob("runs/*/spool.jsonl")
        moments = [one.content["metrics"]["moment"] for one in Spool(spool).read() if one.kind == "metrics"]
        moments = moments[-self._spec.config.schedule.epochs :]
        return median(after - before for before, after in pairwise(moments))

    def cached(self) -> float:
        """Seconds of a command whose run is known."""
        return seconds_of(lambda: printed_by(*self._train()))

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

    def _train(self) -> tuple[str, ...]:
        folder = self._folder
        where = ("--storage", str(folder / "runs"), "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}")
        split = ("--split", "tune", "--seeds", "0", "--cpus-per-worker", str(self._spec.threads), "--json")
        return ("-m", "pipeline", "train", *self._request.arguments, *split, *where)
