"""What folders of kept results have in common: how they are told apart, who builds one, and what is said when the disk is full."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mgmrn.data.splits import Images
from mgmrn.errors import ResourceError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk, or somebody's share of it, is full."""

Progress = Callable[[str], None]
"""Told what takes long."""

PictureStamp = tuple[str, int, int]
"""Name, size in bytes, and time of change in nanoseconds."""


def picture_stamps(images: Images) -> list[PictureStamp]:
    """By what each picture is known, in order; one that is not there has size and time −1, and decoding will name it."""
    return [(file, *_size_and_time(images.root / file)) for file in images.files]


@contextmanager
def only_builder(path: Path) -> Iterator[None]:
    """Holds a lock: one builder of a folder on a file system. The kernel frees the lock of a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def no_room(what: str, needed: int | None, folder: Path, remedy: str) -> ResourceError:
    """The error for a folder that does not fit on its disk.

    Args:
        what: plural, of what is kept.
        needed: bytes, where they are known.
        folder: where it was to stand.
        remedy: how to mend it.
    """
    free = f"{folder} has {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"
    demand = f"take {needed / 2**30:.1f} GiB" if needed is not None else "do not fit on the disk"
    return ResourceError(f"the {what} {demand}, {free}", remedy)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)
