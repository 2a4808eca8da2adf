"""`bench scaling`: images per second of a few workers against one, each with the same CPUs, in turn under one Ray.

The global batch stays what it is, so that all train the same: more workers have fewer images each. Efficiency is the throughput of n
workers over n times that of one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.bench.report import BenchReport, Timing, environment, rounds_ratio, spread
from pipeline.bench.spec import StretchSpec
from pipeline.bench.under_ray import WARM_UP, StretchTimes, train_stretch
from pipeline.console import say
from pipeline.train.cluster import Placement, place, ray_session


@dataclass(frozen=True)
class ScalingRequest:
    """What is trained, and by how many."""

    config: ExperimentConfig
    data_root: Path
    cache_root: Path
    storage: Path
    """Folder that every host sees."""
    workers: tuple[int, ...]
    cpus_per_worker: int
    gpus_per_worker: int | None
    batches: int
    repeats: int
    address: str | None


def run(request: ScalingRequest) -> BenchReport:
    """Times them, the smallest number first, round by round.

    Raises:
        UserError: for cached features, whose training is not what is distributed.
        ResourceError: when the cluster has no room for the most workers.
    """
    if request.config.cache_features:
        raise UserError(
            "on cached features there is too little work to be shared", "cache_features", "set cache_features=false"
        )
    numbers = sorted(request.workers)
    found: dict[int, list[StretchTimes]] = {number: [] for number in numbers}
    request.storage.mkdir(parents=True, exist_ok=True)
    with (
        ray_session(request.address) as hosts,
        tempfile.TemporaryDirectory(prefix="bench-", dir=request.storage) as folder,
    ):
        placements = {n: place(hosts, n, request.cpus_per_worker, request.gpus_per_worker) for n in numbers}
        for turn in range(request.repeats):
            for number in numbers:
                found[number].append(_times(request, placements[number], Path(folder).resolve()))
            say(f"round {turn + 1} of {request.repeats}: " + ", ".join(_shown(n, found[n][-1]) for n in numbers))
    return _report(request, found)


def _times(request: ScalingRequest, placement: Placement, folder: Path) -> StretchTimes:
    spec = StretchSpec(
        config=request.config,
        data_root=request.data_root.resolve(),
        cache_root=request.cache_root,
        threads=request.cpus_per_worker,
        batches=request.batches,
        answer=folder / "answer.json",
    )
    return train_stretch(spec, placement, folder)


def _shown(workers: int, times: StretchTimes) -> str:
    return f"{workers} workers {times.images / times.seconds:.3g} images/s"


def _report(request: ScalingRequest, found: dict[int, list[StretchTimes]]) -> BenchReport:
    (first, alone), *others = found.items()
    rates = [
        spread(f"{n} workers: images", [one.images / one.seconds for one in times], "1/s") for n, times in found.items()
    ]
    exchanges = [
        spread(f"{n} workers: sum of the gradients", [one.exchange_seconds for one in times], "s")
        for n, times in others
    ]
    efficiencies: list[Timing] = []
    for n, times in others:
        ideal = [one.seconds * first / n for one in alone]
        efficiencies.append(rounds_ratio(f"{n} workers: efficiency", ideal, [one.seconds for one in times]))
    batch = alone[0].images // request.batches
    notes = (
        f"{request.config.benchmark.name} at {request.config.benchmark.images.size}², {request.config.model.backbone.name}, "
        f"global batch {batch}, {request.batches} batches after {1 + WARM_UP} that do not count, {request.cpus_per_worker} CPUs a worker.",
        f"Gradients: {alone[0].gradient_bytes / 2**20:.1f} MiB.",
    )
    ratios = {one.name: one.median for one in efficiencies}
    return BenchReport("scaling", environment(("torch", "ray")), (*efficiencies, *rates, *exchanges), ratios, notes)
