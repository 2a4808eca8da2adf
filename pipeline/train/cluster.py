"""Connection to a Ray cluster, or an instance of Ray of this process."""

import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from mgmrn.data.splits import SplitData, check_images_exist, evaluation_images
from mgmrn.errors import ResourceError
from pipeline.claims import taken
from pipeline.config.identity import REPOSITORY
from pipeline.console import duration, say
from pipeline.driver import heartbeat
from pipeline.interruption import kept_handlers
from pipeline.job_environment import in_job, job_settings
from pipeline.ports import LOOPBACK, free_port
from pipeline.redaction import redact_address
from pipeline.storage import StoragePath, check_writable, explained
from pipeline.train import ray_start
from pipeline.train.placement import Host, Placement, available_cpus, rooms
from pipeline.where import Where

CONNECT_SECONDS = 5.0
HOSTS_POLL_SECONDS = 1.0
START_ATTEMPTS = 2
LOCAL = "local"
"""Address by which Ray starts an instance of its own."""

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
_LOCAL_ENVIRONMENT = {
    # `ray.init` would wait for the first worker processes in C++, where neither a signal nor a limit ends it; `await_worker` has a limit.
    "RAY_prestart_worker_first_driver": "0",
    # No process is killed for the memory that others take on a shared machine.
    "RAY_memory_monitor_refresh_ms": "0",
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
"""Variables that lead into servers, or hold passwords: only the driver talks to those, and processes of the instance inherit none."""


@contextmanager
def ray_session(address: str | None) -> Iterator[tuple[Host, ...]]:
    """Connects to a cluster, or starts an instance of this process, and yields its hosts; inside another session, that one serves.

    Without an address `$RAY_ADDRESS` is used where it is set, as in a submitted job, and a local instance elsewhere. Raises `ResourceError`
    when no cluster answers at the address, when Ray cannot start here, or when it starts no worker process.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _hosts()
        return
    address = _address(address)
    local = address == LOCAL
    # Before Ray is imported, which reads its settings then.
    with ray_start.private_instance() if local else nullcontext():
        import ray

        try:
            with kept_handlers(), ray_start.said_when_late("Ray"):
                _connect(address)
        except ResourceError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            message = f"no Ray cluster could be reached at {redact_address(address)}: {_first_line(error)}"
            raise ResourceError(message, "check --address, or leave it out to run on this machine") from error
        try:
            ray_start.await_worker()
            # Ray prints the death of a worker on standard output, where nothing may stand but the result.
            with redirect_stdout(sys.stderr):
                yield _hosts()
        finally:
            with kept_handlers():
                ray.shutdown()
            if local:
                os.environ.pop("RAY_ADDRESS", None)


@contextmanager
def launch_session(
    where: Where, workers: int, data: Iterable[SplitData], folders: Iterable[StoragePath] = ()
) -> Iterator[tuple[Host, ...]]:
    """`ray_session` for a launch of runs, whose folders are held, and whose driver is seen by other hosts, to the end of the context.

    Waits for hosts, where the launch allows it. Before it starts anything: raises `UserError` where pictures of the splits are missing, and
    `ResourceError` where the storage cannot be written to, this machine has no room for the workers, or a living driver works in one of the
    folders.
    """
    check_writable(where.storage)
    each, here = where.cpus_per_worker or 1, available_cpus()
    if _address(where.address) == LOCAL and workers * each > here:
        message = f"{workers} workers × {each} CPUs were asked for, but this machine has {here} CPUs"
        hint = "ask for fewer with --workers or --cpus-per-worker, or name a cluster with --address"
        raise ResourceError(message, hint)
    for split in data:
        check_images_exist(split.train.followed_by(evaluation_images(split)))
    with explained(where.storage), heartbeat(where.storage), taken(folders), ray_session(where.address) as hosts:
        yield await_hosts(hosts, where, workers)


def await_hosts(hosts: tuple[Host, ...], where: Where, workers: int) -> tuple[Host, ...]:
    """Hosts of the cluster, once they have room for the workers or the limit is over; asks Ray's autoscaler for what is missing."""
    cpus, gpus = where.cpus_per_worker or 1, where.gpus_per_worker or 0
    if where.wait_for_hosts is None or rooms(hosts, cpus, gpus) >= workers:
        return hosts
    from ray.autoscaler.sdk import request_resources

    limit = time.monotonic() + where.wait_for_hosts
    bundle = Placement(workers, cpus, gpus).resources_per_worker
    say(
        f"waiting for hosts with room for {workers} × {cpus} CPUs and {gpus:g} GPUs, {duration(where.wait_for_hosts)} at most"
    )
    request_resources(bundles=[bundle] * workers)
    try:
        while rooms(hosts, cpus, gpus) < workers and time.monotonic() < limit:
            time.sleep(HOSTS_POLL_SECONDS)
            hosts = _hosts()
    finally:
        request_resources(bundles=[])
    return hosts


def _connect(address: str) -> None:
    import ray

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address == LOCAL:
        ray_start.check_start_here()
        _start_here()
    else:
        check_reachable(address)
        ray.init(address=address, logging_level="WARNING", log_to_driver=False, runtime_env=_runtime_env())


def _start_here() -> None:
    """Starts an instance on loopback; once more where a busy machine did not bring it up within Ray's own half minute."""
    import ray

    os.environ.update(_LOCAL_ENVIRONMENT)
    for attempt in range(START_ATTEMPTS):
        # Without it, what Ray Tune stops would ask another instance on this machine for its state, and keep its resources for ever.
        port = free_port()
        os.environ["RAY_GCS_SERVER_PORT"], os.environ["RAY_ADDRESS"] = str(port), f"{LOOPBACK}:{port}"
        try:
            with ray_start.without_variables(_DRIVERS_ALONE):
                ray.init(
                    address=LOCAL,
                    num_cpus=available_cpus(),
                    # Ray frees the resources of a stopped trial through the dashboard's state API.
                    include_dashboard=True,
                    logging_level="WARNING",
                    log_to_driver=False,
                    runtime_env=ray_start.worker_interpreter(sys.executable),
                )
            return
        except Exception as error:
            # Ray raises a bare Exception here.
            ray.shutdown()
            if "timed out during startup" not in str(error):
                message = f"Ray did not start on this machine: {_first_line(error)}{ray_start.log_says()}"
                raise ResourceError(message, ray_start.KEEP_LOGS) from error
            if attempt == START_ATTEMPTS - 1:
                message = f"Ray did not come up on this machine within half a minute, twice{ray_start.log_says()}"
                hint = (
                    f"try again when the machine is less busy, or name a cluster with --address; {ray_start.KEEP_LOGS}"
                )
                raise ResourceError(message, hint) from error
        finally:
            del os.environ["RAY_GCS_SERVER_PORT"]
            if not ray.is_initialized():
                del os.environ["RAY_ADDRESS"]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _hosts() -> tuple[Host, ...]:
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Host(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources)


def check_reachable(address: str) -> None:
    """Raises `OSError` where no process listens at a HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        if len(port) > 5 or int(port) > 65535:
            raise OSError(f"there is no port {port}")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _address(given: str | None) -> str:
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def _runtime_env() -> dict[str, object]:
    """Settings and code for the hosts of a cluster, less what a submitted job has brought, and what `.rayignore` names."""
    brought = job_settings()
    settings = {name: os.environ[name] for name in _ENVIRONMENT if name not in brought}
    return {"env_vars": settings} if in_job() else {"env_vars": settings, "working_dir": str(REPOSITORY)}
