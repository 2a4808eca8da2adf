"""Workers of a run and their places: how many there may be, and what each of them gets of the hosts' CPUs and GPUs."""

import os
import re
from dataclasses import dataclass, replace

from mgmrn.config import EpisodicSampling, ExperimentConfig
from mgmrn.errors import ResourceError, UserError
from pipeline.where import Where

PARTS = (0.125, 0.25, 0.5)
"""Parts of a GPU that are proposed; smaller ones leave runs without work for a core each."""
SPARE, CONTEXT_MIB = 1.25, 600
"""Memory that a part must have in relation to the peak of a run, for what torch keeps in reserve, and for CUDA in each process."""
_OPTION, _EXAMPLE = "--workers", "like 2 or 1..4"


@dataclass(frozen=True)
class Workers:
    """Least and largest number of workers, equal where the number is fixed. Within a range a run shrinks and grows with the cluster."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}..{self.most}"

    def check_shares(self, config: ExperimentConfig) -> None:
        """Raises `UserError` when a batch is too small for the largest number of workers, each of which needs an image for every micro-batch;
        and for CUDA graphs of several workers."""
        sampling = config.sampling
        batch = sampling.ways * sampling.shots if isinstance(sampling, EpisodicSampling) else sampling.batch
        parts = config.optimiser.accumulate
        if self.most * parts > batch:
            micro = f" in {parts} micro-batches each" if parts > 1 else ""
            message = f"{self.most} workers cannot share a global batch of {batch} images{micro}"
            raise UserError(message, _OPTION, "use fewer workers or a larger batch")
        if self.most > 1 and config.schedule.compile == "graphs":
            message = f"CUDA graphs are recorded for runs of one worker, and {self.most} were asked for"
            raise UserError(message, "schedule.compile", "set it to auto, or train with one worker")


def parse_workers(text: str) -> Workers:
    """Reads `2` or `1..4`. Raises `UserError` for any other text."""
    match = re.fullmatch(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?", text.strip())
    if match is None:
        raise UserError(f"workers must be a number or a range, got '{text}'", _OPTION, _EXAMPLE)
    least, most = int(match[1]), int(match[2] or match[1])
    if not 1 <= least <= most:
        raise UserError(f"workers must be at least 1 and rise in a range, got '{text}'", _OPTION, _EXAMPLE)
    return Workers(least, most)


@dataclass(frozen=True)
class Host:
    """CPUs and GPUs of one host of the cluster, whether busy or not."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Placement:
    """Workers of one run and the resources of each."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    """Whole GPUs, or the part of one that several runs of one worker share."""
    most_workers: int | None = None
    """Largest number of workers of an elastic run, of which `workers` is the least; None for a fixed number."""

    @property
    def is_alone(self) -> bool:
        """Whether one worker trains the run, from its begin to its end."""
        return self.number == 1

    @property
    def number(self) -> int | tuple[int, int]:
        """Number of workers, or range, in the form of Ray Train's `num_workers`."""
        return self.workers if self.most_workers is None else (self.workers, self.most_workers)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_gpus(gpus_per_worker: float | None, most_workers: int) -> None:
    """Raises `UserError` for GPUs that no worker can have: 1.5, or a part of a GPU for each of several workers, which NCCL refuses."""
    if gpus_per_worker is None or float(gpus_per_worker).is_integer():
        return
    option = "--gpus-per-worker"
    if not gpus_per_worker < 1:
        raise UserError(
            f"a worker takes whole GPUs or a part of one, got {gpus_per_worker:g}", option, "like 0.125, 1 or 2"
        )
    if most_workers > 1:
        message = f"{most_workers} workers of one run cannot share a GPU"
        raise UserError(message, option, "give each a whole one, or train with one worker")


def smallest_part(peak_mib: float, gpu_mib: float) -> float | None:
    """Smallest part of a GPU in which a run of this peak has room to spare; None where it needs a whole one."""
    return next((part for part in PARTS if SPARE * peak_mib + CONTEXT_MIB <= part * gpu_mib), None)


def rooms(hosts: tuple[Host, ...], cpus: int, gpus: float) -> int:
    """Number of workers of one size that fit on the hosts when these are idle."""
    return sum(min(host.cpus // cpus, _shares(host.gpus, gpus) if gpus else host.cpus) for host in hosts)


def _shares(gpus: int, size: float) -> int:
    """Number of workers on some GPUs; none of them uses parts of two."""
    return gpus * int(1 / size + 1e-9) if size < 1 else int(gpus // size)


def place(
    hosts: tuple[Host, ...], workers: int, cpus_per_worker: int | None, gpus_per_worker: float | None
) -> Placement:
    """Completes a request by what the cluster has. Raises `ResourceError` when it could not be placed even on an idle cluster.

    Without `cpus_per_worker` the workers share the CPUs of the hosts evenly; without `gpus_per_worker` each gets a GPU where there is one for
    every worker.
    """
    if gpus_per_worker is None:
        gpus_per_worker = int(rooms(hosts, 1, 1) >= workers)
    if cpus_per_worker is None:
        most = max((host.cpus for host in hosts), default=0)
        cpus_per_worker = next((c for c in range(most, 1, -1) if rooms(hosts, c, gpus_per_worker) >= workers), 1)
    if (room := rooms(hosts, cpus_per_worker, gpus_per_worker)) < workers:
        cpus, gpus = sum(host.cpus for host in hosts), sum(host.gpus for host in hosts)
        with_gpus = f" and {gpus_per_worker:g} GPUs" if gpus_per_worker else ""
        raise ResourceError(
            f"{workers} workers × {cpus_per_worker} CPUs{with_gpus} were asked for, "
            f"but the cluster ({len(hosts)} hosts, {cpus} CPUs, {gpus} GPUs) has room for {room} such workers",
            "ask for fewer with --workers, --cpus-per-worker or --gpus-per-worker, or add hosts",
        )
    return Placement(workers, cpus_per_worker, gpus_per_worker)


def place_elastic(
    hosts: tuple[Host, ...], workers: Workers, cpus_per_worker: int | None, gpus_per_worker: float | None
) -> Placement:
    """Places at least the least number of workers; the resources are shared by as many as fit on the hosts now."""
    if workers.least == workers.most:
        return place(hosts, workers.least, cpus_per_worker, gpus_per_worker)
    least = place(hosts, workers.least, cpus_per_worker or 1, gpus_per_worker)
    room = rooms(hosts, least.cpus_per_worker, least.gpus_per_worker)
    each = place(hosts, min(workers.most, room), cpus_per_worker, least.gpus_per_worker)
    return replace(each, workers=workers.least, most_workers=workers.most)


def place_runs(hosts: tuple[Host, ...], where: Where, runs: int, workers: Workers) -> tuple[int, Placement]:
    """`place_trials` for the runs of a launch; elastic runs, which may take the whole cluster, are run one after another."""
    if workers.least == workers.most:
        return place_trials(hosts, where, runs, workers.least, None)
    return 1, place_elastic(hosts, workers, where.cpus_per_worker, where.gpus_per_worker)


def place_trials(
    hosts: tuple[Host, ...], where: Where, trials: int, workers: int, concurrency: int | None
) -> tuple[int, Placement]:
    """Number of trials at once, as many as fit where it is None, and the placement of their runs, which share the CPUs evenly.

    More trials than GPUs share these, where nothing else was asked for. Raises a `ResourceError` when not even an idle cluster could place
    them.
    """
    cpus, gpus = where.cpus_per_worker, where.gpus_per_worker
    there = sum(host.gpus for host in hosts)
    if gpus is None and workers == 1 and concurrency is not None and 0 < there < concurrency:
        part = 1 / -(-concurrency // there)
        gpus = part if rooms(hosts, cpus or 1, part) >= concurrency else None
    if concurrency is None:
        one = place(hosts, workers, cpus or 1, gpus)
        gpus = one.gpus_per_worker
        concurrency = max(1, min(rooms(hosts, one.cpus_per_worker, gpus) // workers, trials))
    shared = place(hosts, concurrency * workers, cpus, gpus)
    return concurrency, Placement(workers, shared.cpus_per_worker, shared.gpus_per_worker)
