"""Store, folders and resources that all trials of a launch share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tracking.store import TrackingStore
from pipeline.train.placement import Host, Placement, place, rooms
from pipeline.train.tracked import Opening, parent_spool
from pipeline.where import Where


class Clerk:
    """Thread that makes plots, uploads artifacts and ends runs one after another, so that the loop of Ray Tune does not wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clerk")
        self._errands: list[Future[Any]] = []

    def do(self, errand: Callable[[], Any]) -> None:
        """Queue an errand."""
        self._errands.append(self._pool.submit(errand))

    def finish(self) -> None:
        """Wait for all errands, and raise the error of the first that failed."""
        self._pool.shutdown(wait=True)
        for errand in self._errands:
            errand.result()


@dataclass(frozen=True)
class Site:
    """Tracking, storage and placement of the runs of a launch."""

    store: TrackingStore
    opening: Opening
    """Study, parent run and placement of each run."""
    data_root: Path
    storage: Path
    """Folder of run folders."""
    concurrency: int
    """Largest number of trials at once."""
    clerk: Clerk = field(default_factory=Clerk)

    @property
    def tune_folder(self) -> Path:
        """Folder of Ray Tune's own files, which the launch removes at its end."""
        return self.storage / f"tune-{self.opening.parent_run_id}"

    def log_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Add metrics to the parent run."""
        parent_spool(self.storage, self.opening.parent_run_id).append(step, figures)


def place_trials(
    hosts: tuple[Host, ...], where: Where, trials: int, workers: int, concurrency: int | None
) -> tuple[int, Placement]:
    """Number of trials at once, as many as fit where it is None, and the placement of each of their runs.

    Where no CPUs per worker are asked for, the trials at once share those of the cluster evenly. Raises a `ResourceError` when not even
    an idle cluster could place them.
    """
    cpus, gpus = where.cpus_per_worker, where.gpus_per_worker
    if concurrency is None:
        one = place(hosts, workers, cpus or 1, gpus)
        gpus = one.gpus_per_worker
        concurrency = max(1, min(rooms(hosts, one.cpus_per_worker, gpus) // workers, trials))
    shared = place(hosts, concurrency * workers, cpus, gpus)
    return concurrency, Placement(workers, shared.cpus_per_worker, shared.gpus_per_worker)
