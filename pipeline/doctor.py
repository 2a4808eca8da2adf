"""Checks of this machine before a run, each with a remedy, in the order in which a run meets what they are about."""

import os
import resource
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.config.compose import load_benchmark_config
from pipeline.config.files import config_names
from pipeline.config.identity import REPOSITORY
from pipeline.console import shell_command
from pipeline.databases import database_address
from pipeline.errors import ExitCode, TrackingError
from pipeline.jobs.server import TOKEN_FILE, TOKEN_SOURCES
from pipeline.redaction import redact_address
from pipeline.storage import StoragePath, check_writable
from pipeline.tracking import connection
from pipeline.tracking.store import TrackingStore
from pipeline.train.cluster import check_reachable
from pipeline.train.placement import available_cpus
from pipeline.train.ray_start import check_start_here, private_instance
from pipeline.where import Where

OLDEST, NEWEST = (3, 11), (3, 12)
"""Versions of Python under which the tests ran."""
GB = 10**9
WORKER_BYTES = GB
"""Memory of a process that has imported torch and trains a small network."""
LEAST_BYTES, USUAL_BYTES = 2 * GB, 6 * GB
"""Memory of a driver, Ray and one worker; the same with pictures and a second worker."""
USUAL_SHARED_BYTES = GB
LEAST_DISK_BYTES, USUAL_DISK_BYTES = GB, 10 * GB
USUAL_FILES = 4096
NVIDIA_SECONDS = 20.0
_SETUP = "make setup, then source .venv/bin/activate"
_MAKE_ONE = "python -m pipeline data make synthetic, or data guide cub for a real one"


@dataclass(frozen=True)
class Line:
    """One check and its finding: `bad` makes a run impossible, `warn` slower, or may disturb it later."""

    state: Literal["ok", "warn", "bad"]
    check: str
    found: str
    remedy: str = ""
    code: ExitCode = ExitCode.FINE
    """Exit code that a run would end with; FINE unless the line is bad."""


def _wrong(check: str, found: str, remedy: str) -> Line:
    """A bad line about something that was named on the command line or in the environment."""
    return Line("bad", check, found, remedy, ExitCode.BAD_INPUT)


def _here(check: str, found: str, warn: str = "", bad: str | None = None) -> Line:
    """A line about this machine: bad or a warning where that has a remedy, else fine."""
    if bad is not None:
        return Line("bad", check, found, bad, ExitCode.CANNOT_RUN_HERE)
    return Line("warn" if warn else "ok", check, found, warn)


def examine(where: Where) -> Iterator[Line]:
    """Examines this machine and what a run would use; the file that is written to try a disk is removed."""
    yield python_line()
    yield from package_lines(REPOSITORY / "requirements.txt")
    yield cpu_line()
    yield memory_line()
    yield shared_memory_line()
    yield from gpu_lines()
    yield disk_line(where.storage)
    yield open_files_line()
    yield ray_line(where.address)
    yield tracking_line(where.tracking_uri)
    yield from benchmark_lines(where.data_root)
    yield from secret_lines()


def python_line(running: tuple[int, int] = sys.version_info[:2]) -> Line:
    """Whether the tests ran under this version of Python."""
    shown = ".".join(map(str, running))
    if running < OLDEST:
        return _here("Python", f"{shown} is too old", bad="make PYTHON=python3.12 setup")
    if running > NEWEST:
        return _here("Python", f"{shown} was not tried", "take 3.11 or 3.12: make PYTHON=python3.12 setup")
    return _here("Python", f"{shown} at {sys.prefix}")


def package_lines(requirements: Path) -> Iterator[Line]:
    """A line for each package that is missing or differs from its pin in a requirements file, and one for all others."""
    if not requirements.is_file():
        missing = f"{requirements} is not there, so versions are not compared"
        yield _here("packages", missing, "run in the checkout's folder")
        return
    fine, lines = 0, requirements.read_text(encoding="utf-8").splitlines()
    for wanted in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            yield _here(wanted.name, "not installed", bad=_SETUP)
            continue
        if wanted.specifier.contains(there, prereleases=True):
            fine += 1
        else:
            yield _here(wanted.name, f"{there}, tried with {wanted.specifier}", _SETUP)
    yield _here("packages", f"{fine} as in {requirements.name}")


def cpu_line() -> Line:
    """Number of CPUs that this process may use."""
    count = available_cpus()
    alone = "runs work, one at a time; two or more let a worker decode while it trains"
    return _here("CPUs", str(count), alone if count == 1 else "")


def memory_line() -> Line:
    """Free memory, within the limit of a container."""
    memory = psutil.virtual_memory()
    limit = min(memory.total, _container_limit() or memory.total)
    free = min(memory.available, limit)
    shown = f"{free / GB:.1f} GB free of {limit / GB:.1f} GB"
    if limit < LEAST_BYTES:
        return _here("memory", shown, bad=f"a run needs {LEAST_BYTES / GB:.0f} GB at least: take a larger machine")
    workers = max(1, free // WORKER_BYTES - 1)
    fewer = f"count 1 GB a worker; end other programs, or use --workers {workers:.0f} at most"
    return _here("memory", shown, fewer if free < USUAL_BYTES else "")


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def shared_memory_line(folder: Path = Path("/dev/shm")) -> Line:
    """Free space in the folder where Ray keeps what its processes share."""
    slower = "Ray uses the disk instead, which is slower"
    if not folder.is_dir():
        return _here("shared memory", f"there is no {folder}", slower)
    free = shutil.disk_usage(folder).free
    small = f"in a container: docker run --shm-size=2g; {slower}" if free < USUAL_SHARED_BYTES else ""
    return _here("shared memory", f"{free / GB:.1f} GB free at {folder}", small)


def gpu_lines() -> Iterator[Line]:
    """Each GPU with its driver, and whether torch can use it; torch is imported only where there is a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield _here("GPUs", "none (no nvidia-smi): runs are on the CPUs")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version,compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        silent = f"nvidia-smi does not answer within {NVIDIA_SECONDS:.0f} s"
        yield _here("GPUs", silent, "look after the driver: runs on GPUs may hang too")
        return
    if done.returncode:
        first = (done.stderr or done.stdout).strip().partition("\n")[0]
        remedy = "load the driver, or start the container with --gpus all; runs are on the CPUs"
        yield _here("GPUs", f"nvidia-smi: {first}", remedy)
        return
    found = done.stdout.strip().splitlines()
    for number, text in enumerate(found):
        alone = f"for runs that share it (--gpus-per-worker below 1): nvidia-smi -i {number} -c DEFAULT"
        yield _here(f"GPU {number}", text, alone if "Exclusive" in text else "")
    import torch

    from mgmrn.device import lacking_for_triton

    if torch.cuda.device_count() < len(found):
        fewer = f"torch {torch.__version__} sees {torch.cuda.device_count()} of {len(found)}"
        yield _here("GPUs", fewer, "update the driver to one for torch's CUDA, or unset CUDA_VISIBLE_DEVICES")
    if missing := lacking_for_triton():
        remedy = "install it: with schedule.compile: auto networks are finetuned as they are, at a third of the speed"
        yield _here("compiling for GPUs", f"{missing} is missing", remedy)


def disk_line(storage: StoragePath) -> Line:
    """Free space in the folder of checkpoints; a small file is written there and removed, in a bucket too."""
    try:
        check_writable(storage)
    except ResourceError as error:
        return _here("storage", error.message, bad=error.hint)
    if storage.disk is None:
        return _here("storage", f"{storage} can be written to")
    folder = next(place for place in (storage.disk, *storage.disk.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    shown = f"{free / GB:.1f} GB free at {storage}"
    if free < LEAST_DISK_BYTES:
        return _here("storage", shown, bad="make room there, or name another folder with --storage")
    larger = "a checkpoint of ResNet-101 at D = 2048 takes gigabytes; name a larger disk with --storage"
    return _here("storage", shown, larger if free < USUAL_DISK_BYTES else "")


def open_files_line() -> Line:
    """Number of files and connections that a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard < 0 else str(hard)
    more = f"ulimit -n 65535 (at most {most} here) in the shell that starts the run"
    shown = "unlimited" if soft < 0 else f"{soft} a process"
    return _here("open files", shown, more if 0 <= soft < USUAL_FILES else "")


def ray_line(address: str | None) -> Line:
    """Whether Ray can start on this machine; where a cluster is named, whether its head answers."""
    given = address or os.environ.get("RAY_ADDRESS")
    shown = redact_address(given or "")
    if given is None:
        try:
            with private_instance():
                check_start_here()
        except ResourceError as error:
            return _here("Ray", error.message, bad=error.hint)
        return _here("Ray", "no cluster was named: it is started here for each command")
    if not given.rpartition(":")[2].isdigit():
        return _here("Ray", f"{shown} is not HOST:PORT, so it was not tried", "name the head, like HEAD:6379")
    try:
        check_reachable(given)
    except OSError as error:
        remedy = "start the head, open its port, or leave out --address to run here"
        return _here("Ray", f"nothing answers at {shown} ({error})", bad=remedy)
    return _here("Ray", f"a service answers at {shown}")


def tracking_line(uri: str) -> Line:
    """Whether runs can be tracked in a store; a server is asked with the credentials of this user."""
    shown = redact_address(uri)
    try:
        connection.check_reachable(database_address(uri, "--tracking-uri"))
        if uri.startswith("http"):
            TrackingStore.open(uri).runs_of(("mgmrn/doctor",), "")
    except (TrackingError, UserError) as error:
        return _wrong("tracking", f"{shown}: {error.message}", error.hint)
    return _here("tracking", f"{shown} can be reached")


def benchmark_lines(root: Path) -> Iterator[Line]:
    """A line for each benchmark of which a data root holds anything; a root that was named and does not exist is an error."""
    if root.is_dir():
        found = [line for name in config_names("benchmark") if (line := _benchmark_line(root, name)) is not None]
        yield from found or [_here("data root", f"there is no benchmark in {root}", _MAKE_ONE)]
    elif root == places.DATA_ROOT:
        yield _here("data root", f"{root} is not there yet", _MAKE_ONE)
    else:
        yield _wrong("data root", f"{root} does not exist", "name the folder that holds xlsa17/ with --data-root")


def _benchmark_line(root: Path, name: str) -> Line | None:
    # Loads scipy, which may be missing: a line about packages says so then.
    from mgmrn.data.xlsa17 import lists_folder, word_vector_file

    config = load_benchmark_config(name)
    lists = lists_folder(root, config.name)
    if not lists.is_dir():
        return None
    needed = {
        "res101.mat": lists / "res101.mat",
        "att_splits.mat": lists / "att_splits.mat",
        "word vectors": word_vector_file(root, config),
        "pictures": root / config.name,
    }
    verify = shell_command("data", "verify", name, "--data-root", root)
    if missing := [f"{what} at {path}" for what, path in needed.items() if not path.exists()]:
        return _here(name, f"lacks {', '.join(missing)}", f"{verify}, or data guide")
    return Line("ok", name, "its files are there, and were not read", verify)


def secret_lines() -> Iterator[Line]:
    """Files with passwords and tokens that others on this machine may read."""
    token = os.environ.get(TOKEN_SOURCES[1])
    files = (
        Path(token) if token else Path.home() / TOKEN_FILE,
        Path.home() / ".mlflow" / "credentials",
        places.HOME / "tracking" / "credentials.env",
        Path.home() / ".pgpass",
    )
    modes = {file: stat.S_IMODE(file.stat().st_mode) for file in files if file.is_file()}
    open_ones = {file: mode for file, mode in modes.items() if mode & 0o077}
    for file, mode in open_ones.items():
        remedy = shlex.join(("chmod", "600", str(file)))
        yield _wrong("secrets", f"{file} has mode {mode:o}: others may read it", remedy)
    if not open_ones:
        names = ", ".join(map(str, modes))
        yield _here("secrets", f"you alone may read {names}" if modes else "no token or password file")
