"""Finding Ray, and saying at once when what is asked for can never be placed."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from mgmrn.errors import ResourceError
from pipeline.interruption import kept_handlers
from pipeline.job_environment import in_job, job_settings
from pipeline.ports import LOOPBACK, free_port
from pipeline.train.private_instance import private_instance
from pipeline.train.start_checks import check_start_here, worker_interpreter
from pipeline.train.start_watch import KEEP_LOGS, await_worker, ended_when_stuck, log_says, said_when_late
from pipeline.train.workers import Workers

REPOSITORY = Path(__file__).resolve().parents[2]

CONNECT_SECONDS = 5.0
START_ATTEMPTS = 2
LOCAL = "local"
"""Ray's word for an instance of its own."""

_LOCAL_ENVIRONMENT = {
    # No process is killed for the memory that others take on a shared machine.
    "RAY_memory_monitor_refresh_ms": "0",
}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # The controller takes one report per poll: the default of 2 s would be the length of short epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # glibc returns a thread's memory arena by arena: a rank trains in a thread and would fault in thousands of pages every epoch.
    "MALLOC_ARENA_MAX": "1",
    # On a CPU every large activation would be a fresh mapping whose pages fault in one by one.
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    # The driver asks for no GPU; Ray would otherwise hide the host's GPUs from it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_DRIVERS_ALONE = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MGMRN_STUDY_STORAGE",
    "PGPASSFILE",
    "PGPASSWORD",
)
"""Variables that lead into servers, or hold passwords."""


@dataclass(frozen=True)
class Placement:
    """Workers of one run and what each of them gets."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    most_workers: int | None = None
    """Where given, the run may grow to so many, and `workers` is the least that it goes on with."""

    @property
    def number(self) -> int | tuple[int, int]:
        """Of workers, as Ray Train wants it."""
        return self.workers if self.most_workers is None else (self.workers, self.most_workers)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """As Ray Train wants it."""
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


@dataclass(frozen=True)
class Host:
    """CPUs and GPUs of one host of the cluster, whether busy or not."""

    cpus: int
    gpus: int


@contextmanager
def ray_session(address: str | None) -> Iterator[tuple[Host, ...]]:
    """Connects to a cluster, or starts an instance of this process's own, and yields its hosts.

    Inside another session of this process, that one serves.

    Args:
        address: as `ray.init` takes it; None: `$RAY_ADDRESS` where that is set (as in a submitted job), else a local instance.

    Raises:
        ResourceError: when no cluster answers at the address, when Ray cannot start here, or when it starts no worker process.
    """
    address = _address(address)
    # Before Ray is imported, which reads its settings then.
    private: AbstractContextManager[Callable[[], None]] = (
        private_instance() if address == LOCAL else nullcontext(lambda: None)
    )
    with private as clean_up, _connected(address, clean_up) as hosts:
        yield hosts


@contextmanager
def _connected(address: str, clean_up: Callable[[], None]) -> Iterator[tuple[Host, ...]]:
    """Hosts of the cluster at an address, or of an instance of this process's own, between `ray.init` and `ray.shutdown`.

    Args:
        address: as `ray.init` takes it.
        clean_up: called where the process must end because `ray.init` hangs.
    """
    import ray

    if ray.is_initialized():
        yield _hosts()
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local = address == LOCAL
    if local:
        os.environ.update(_LOCAL_ENVIRONMENT)
    try:
        with kept_handlers(), said_when_late("Ray"), ended_when_stuck(clean_up):
            if local:
                check_start_here()
                _start_here()
            else:
                knock(address)
                ray.init(address=address, logging_level="WARNING", log_to_driver=False, runtime_env=_runtime_env())
    except ResourceError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster could be reached at {address}: {_first_line(error)}",
            "check --address, or leave it out to run on this machine",
        ) from error
    try:
        await_worker()
        # Ray prints the death of a worker on standard output, where nothing may stand but the result.
        with redirect_stdout(sys.stderr):
            yield _hosts()
    finally:
        ray.shutdown()
        if local:
            os.environ.pop("RAY_ADDRESS", None)


def _start_here() -> None:
    """Starts an instance on loopback; once more where a busy machine did not bring it up within Ray's own half minute.

    Raises:
        ResourceError: when it did not come up the second time either.
    """
    import ray

    for attempt in range(START_ATTEMPTS):
        # Its processes must be told which instance they belong to: where another one runs on this machine, what Ray Tune
        # stops would else ask the wrong one for its state, and keep its resources for ever.
        port = free_port()
        os.environ["RAY_GCS_SERVER_PORT"], os.environ["RAY_ADDRESS"] = str(port), f"{LOOPBACK}:{port}"
        try:
            with _without_credentials():
                ray.init(
                    address=LOCAL,
                    num_cpus=available_cpus(),
                    # Ray frees the resources of a stopped trial through the dashboard's state API.
                    include_dashboard=True,
                    logging_level="WARNING",
                    log_to_driver=False,
                    runtime_env=worker_interpreter(sys.executable),
                )
            return
        except Exception as error:
            # Ray raises a bare Exception here.
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise ResourceError(
                    f"Ray did not start on this machine: {_first_line(error)}{log_says()}", KEEP_LOGS
                ) from error
            if attempt == START_ATTEMPTS - 1:
                raise ResourceError(
                    f"Ray did not come up on this machine within half a minute, twice{log_says()}",
                    f"try again when the machine is less busy, or name a cluster with --address; {KEEP_LOGS}",
                ) from error
        finally:
            del os.environ["RAY_GCS_SERVER_PORT"]
            if not ray.is_initialized():
                del os.environ["RAY_ADDRESS"]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _without_credentials() -> Iterator[None]:
    """What is started inside inherits no way into the driver's databases and servers: only the driver talks to them."""
    kept = {name: os.environ.pop(name) for name in _DRIVERS_ALONE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _hosts() -> tuple[Host, ...]:
    import ray

    return tuple(
        Host(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    )


def knock(address: str) -> None:
    """Looks whether somebody listens at a HOST:PORT; where nobody does, Ray itself would wait for minutes.

    Raises:
        OSError: when nobody does.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def check_room_here(address: str | None, workers: int, cpus_per_worker: int | None) -> None:
    """Says, before Ray is started for nothing, that this machine has too few CPUs.

    Raises:
        ResourceError: when Ray would be started here and could never place the workers.
    """
    each, here = cpus_per_worker or 1, available_cpus()
    if _address(address) == LOCAL and workers * each > here:
        raise ResourceError(
            f"{workers} workers × {each} CPUs were asked for, but this machine has {here} CPUs",
            "ask for fewer with --workers or --cpus-per-worker, or name a cluster with --address",
        )


def _address(given: str | None) -> str:
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place(hosts: tuple[Host, ...], workers: int, cpus_per_worker: int | None, gpus_per_worker: int | None) -> Placement:
    """Completes what was asked for by what the cluster has.

    Without `gpus_per_worker`, each worker gets a GPU where every worker can have one. Without `cpus_per_worker`, the workers share the
    CPUs of the hosts evenly.

    Raises:
        ResourceError: when it could not be placed even on an idle cluster.
    """
    if gpus_per_worker is None:
        gpus_per_worker = int(rooms(hosts, 1, 1) >= workers)
    if cpus_per_worker is None:
        most = max((host.cpus for host in hosts), default=0)
        cpus_per_worker = next((c for c in range(most, 1, -1) if rooms(hosts, c, gpus_per_worker) >= workers), 1)
    if (room := rooms(hosts, cpus_per_worker, gpus_per_worker)) < workers:
        cpus, gpus = sum(host.cpus for host in hosts), sum(host.gpus for host in hosts)
        asked = f"{workers} workers × {cpus_per_worker} CPUs" + (
            f" and {gpus_per_worker} GPUs" if gpus_per_worker else ""
        )
        raise ResourceError(
            f"{asked} were asked for, but the cluster ({len(hosts)} hosts, {cpus} CPUs, {gpus} GPUs) has room for {room} such workers",
            "ask for fewer with --workers, --cpus-per-worker or --gpus-per-worker, or add hosts",
        )
    return Placement(workers, cpus_per_worker, gpus_per_worker)


def place_elastic(
    hosts: tuple[Host, ...], workers: Workers, cpus_per_worker: int | None, gpus_per_worker: int | None
) -> Placement:
    """As `place` for the least number of workers; of what is there now, as many as may be get their share.

    Raises:
        ResourceError: when not even the least could be placed on an idle cluster.
    """
    if workers.least == workers.most:
        return place(hosts, workers.least, cpus_per_worker, gpus_per_worker)
    least = place(hosts, workers.least, cpus_per_worker or 1, gpus_per_worker)
    room = rooms(hosts, least.cpus_per_worker, least.gpus_per_worker)
    each = place(hosts, min(workers.most, room), cpus_per_worker, least.gpus_per_worker)
    return replace(each, workers=workers.least, most_workers=workers.most)


def rooms(hosts: tuple[Host, ...], cpus: int, gpus: int) -> int:
    """How many workers of one size fit on the hosts when these are idle."""
    return sum(min(host.cpus // cpus, host.gpus // gpus if gpus else host.cpus) for host in hosts)


def _runtime_env() -> dict[str, object]:
    """Ships settings and code to a cluster's hosts, less what a submitted job has brought, and what `.rayignore` names."""
    brought = job_settings()
    settings = {name: os.environ[name] for name in _ENVIRONMENT if name not in brought}
    return {"env_vars": settings} if in_job() else {"env_vars": settings, "working_dir": str(REPOSITORY)}
