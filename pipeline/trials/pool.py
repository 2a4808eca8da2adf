"""How many trials run at once, and what each of their ranks gets."""

from __future__ import annotations

from pipeline.train.cluster import Host, Placement, place, rooms
from pipeline.trials.plan import Pool


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
