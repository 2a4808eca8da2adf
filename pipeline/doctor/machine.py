"""CPUs, memory, GPUs, disk and limits of this machine."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import ResourceError
from pipeline.doctor.line import Line, lacking
from pipeline.train.cluster import available_cpus
from pipeline.train.storage import check_writable

GB = 10**9
WORKER_BYTES = GB
"""Memory of a process that has imported torch and trains a small network."""
LEAST_BYTES, USUAL_BYTES = 2 * GB, 6 * GB
"""Memory of a driver, Ray and one worker; the same with pictures and a second worker."""
USUAL_SHARED_BYTES = GB
LEAST_DISK_BYTES, USUAL_DISK_BYTES = GB, 10 * GB
USUAL_FILES = 4096
NVIDIA_SECONDS = 20.0


def cpu_line() -> Line:
    """Number of CPUs that this process may use."""
    count = available_cpus()
    if count == 1:
        return Line("warn", "CPUs", "1", "runs work, one at a time; two or more let a worker decode while it trains")
    return Line("ok", "CPUs", str(count))


def memory_line() -> Line:
    """Free memory, within the limit of a container."""
    memory = psutil.virtual_memory()
    limit = min(memory.total, _container_limit() or memory.total)
    free = min(memory.available, limit)
    shown = f"{free / GB:.1f} GB free of {limit / GB:.1f} GB"
    if limit < LEAST_BYTES:
        return lacking("memory", shown, f"a run needs {LEAST_BYTES / GB:.0f} GB at least: take a larger machine")
    if free < USUAL_BYTES:
        return Line(
            "warn",
            "memory",
            shown,
            f"count 1 GB a worker; end other programs, or use --workers {max(1, free // WORKER_BYTES - 1):.0f} at most",
        )
    return Line("ok", "memory", shown)


def _container_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def shared_memory_line(folder: Path = Path("/dev/shm")) -> Line:
    """Free space in the folder where Ray keeps what its processes share."""
    if not folder.is_dir():
        return Line("warn", "shared memory", f"there is no {folder}", "Ray uses the disk instead, which is slower")
    free = shutil.disk_usage(folder).free
    shown = f"{free / GB:.1f} GB free at {folder}"
    if free < USUAL_SHARED_BYTES:
        return Line(
            "warn",
            "shared memory",
            shown,
            "in a container: docker run --shm-size=2g; Ray uses the disk instead, which is slower",
        )
    return Line("ok", "shared memory", shown)


def gpu_lines() -> Iterator[Line]:
    """Each GPU with its driver, and whether torch can use it; torch is imported only where there is a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Line("ok", "GPUs", "none (no nvidia-smi): runs are on the CPUs")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        yield Line(
            "warn",
            "GPUs",
            f"nvidia-smi does not answer within {NVIDIA_SECONDS:.0f} s",
            "look after the driver: runs on GPUs may hang too",
        )
        return
    if done.returncode:
        first = (done.stderr or done.stdout).strip().partition("\n")[0]
        yield Line(
            "warn",
            "GPUs",
            f"nvidia-smi: {first}",
            "load the driver, or start the container with --gpus all; runs are on the CPUs",
        )
        return
    found = done.stdout.strip().splitlines()
    yield from (Line("ok", f"GPU {number}", text) for number, text in enumerate(found))
    import torch

    from mgmrn.device import lacking_for_triton

    if torch.cuda.device_count() < len(found):
        yield Line(
            "warn",
            "GPUs",
            f"torch {torch.__version__} sees {torch.cuda.device_count()} of {len(found)}",
            "update the driver to one for torch's CUDA, or unset CUDA_VISIBLE_DEVICES",
        )
    if lacking := lacking_for_triton():
        yield Line(
            "warn",
            "compiling for GPUs",
            f"{lacking} is missing",
            "install it: with schedule.compile: auto networks are trained as they are, at a third of the speed",
        )


def disk_line(storage: Path) -> Line:
    """Free space in the folder of checkpoints; a small file is written there and removed."""
    try:
        check_writable(storage)
    except ResourceError as error:
        return lacking("storage", error.message, error.hint)
    folder = next(place for place in (storage, *storage.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    shown = f"{free / GB:.1f} GB free at {storage}"
    if free < LEAST_DISK_BYTES:
        return lacking("storage", shown, "make room there, or name another folder with --storage")
    if free < USUAL_DISK_BYTES:
        return Line(
            "warn",
            "storage",
            shown,
            "a checkpoint of ResNet-101 at D = 2048 takes gigabytes; name a larger disk with --storage",
        )
    return Line("ok", "storage", shown)


def open_files_line() -> Line:
    """Number of files and connections that a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < USUAL_FILES:
        most = "unlimited" if hard < 0 else str(hard)
        return Line(
            "warn",
            "open files",
            f"{soft} a process",
            f"ulimit -n 65535 (at most {most} here) in the shell that starts the run",
        )
    return Line("ok", "open files", "unlimited" if soft < 0 else f"{soft} a process")
