"""What all trials of a launch share: store, folders, room, and the thread that does what would make Ray Tune's loop wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.placement import Host, Placement, place, rooms
from pipeline.train.spec import RunSpec
from pipeline.train.tracked import Opening, parent_spool
from pipeline.trials.plan import Pool


class Clerk:
    """Thread that makes plots, uploads artifacts and ends runs, one after another, while Ray Tune's loop goes on."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clerk")
        self._errands: list[Future[Any]] = []

    def do(self, errand: Callable[[], Any]) -> None:
        """Queues an errand."""
        self._errands.append(self._pool.submit(errand))

    def finish(self) -> None:
        """Waits for all errands.

        Raises:
            Exception: what the first of them that failed raised.
        """
        self._pool.shutdown(wait=True)
        for errand in self._errands:
            errand.result()


@dataclass(frozen=True)
class Site:
    """Where the runs of a launch are tracked, stored and placed."""

    store: TrackingStore
    opening: Opening
    """Study, parent run and placement of each run."""
    data_root: Path
    storage: Path
    """Folder of run folders."""
    pool: Pool
    clerk: Clerk

    @property
    def tune_folder(self) -> Path:
        """Ray Tune's own files, which are removed afterwards."""
        return self.storage / f"tune-{self.opening.parent_run_id}"

    def log_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds figures to the launch's own run."""
        parent_spool(self.storage, self.opening.parent_run_id).append(step, figures)

    def spec(self, cell: Cell) -> RunSpec:
        """A run as its workers are told it."""
        return cell.spec(self.data_root, self.storage, self.opening.placement.cpus_per_worker)


def make_pool(
    hosts: tuple[Host, ...],
    trials: int,
    workers: int,
    concurrency: int | None,
    cpus_per_worker: int | None,
    gpus_per_worker: int | None,
) -> Pool:
    """As many trials at once as fit, one CPU for each worker unless more is asked for; never more than the cluster has.

    Args:
        hosts: of the cluster.
        trials: how many there are to be run.
        workers: ranks of each of their runs.
        concurrency: trials at once; None: as many as fit.
        cpus_per_worker: None: what the trials at once leave, shared evenly.
        gpus_per_worker: None: one where every worker can have one.

    Raises:
        ResourceError: when so much could not be placed even on an idle cluster.
    """
    if concurrency is not None:
        placed = place(hosts, concurrency * workers, cpus_per_worker, gpus_per_worker)
        return Pool(concurrency, Placement(workers, placed.cpus_per_worker, placed.gpus_per_worker))
    one = place(hosts, workers, cpus_per_worker or 1, gpus_per_worker)
    room = rooms(hosts, one.cpus_per_worker, one.gpus_per_worker)
    concurrency = max(1, min(room // workers, trials))
    if cpus_per_worker is None:
        one = place(hosts, concurrency * workers, None, one.gpus_per_worker)
    return Pool(concurrency, Placement(workers, one.cpus_per_worker, one.gpus_per_worker))
