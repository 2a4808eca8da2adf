"""A small disk of a test's own, where the test may mount one."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory, mounted for as long as the context lasts."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


@contextmanager
def remounted(folder: Path, option: str) -> Iterator[None]:
    """The disk with another option, such as `ro`, for as long as the context lasts."""
    _run("mount", "-o", f"remount,{option}", str(folder))
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no room; returns it."""
    filler = folder / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    return filler


@cache
def _may_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with TemporaryDirectory() as name:
        try:
            with small_disk(Path(name) / "disk", 1):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


TMPFS = pytest.mark.skipif(not _may_mount(), reason="needs the right to mount a file system")
