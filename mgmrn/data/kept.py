"""Folders of cached maps: identified, built by one process, checked, replaced if damaged.

A folder's content is checked once on each host: afterwards a note beside the folder holds the size and times of change
of its files. At every opening they are compared with the note, and the content is read again when one differs or the
host was started again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mgmrn.atomic_file import replacing
from mgmrn.config import Level
from mgmrn.data.splits import Images
from mgmrn.errors import ResourceError
from mgmrn.manifest import find_damage, write_manifest

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk or quota."""

Progress = Callable[[str], None]
"""Called with messages on slow steps."""

PictureStamp = tuple[str, int, int]
"""Name, size in bytes, and time of change in nanoseconds."""


def picture_stamps(images: Images) -> list[PictureStamp]:
    """Stamp of each picture, in order; size and time of a missing one are −1."""
    return [(file, *_size_and_time(images.root / file)) for file in images.files]


def ensure_whole(
    folders: Callable[[], Mapping[Level, Path]],
    make: Callable[[list[Level]], None],
    lock: Path,
    progress: Progress,
) -> Mapping[Level, Path]:
    """The folders; missing and damaged ones are made. A process that has a damaged one open keeps its files.

    Args:
        folders: the present place of each folder.
        make: makes folders that are missing, each with a manifest.
        lock: file that is locked meanwhile, in the folder of all of them.
    """
    found = folders()
    if all(_noted_whole(folder) for folder in found.values()):
        return found
    if not os.access(lock.parent, os.W_OK) and all(find_damage(folder) is None for folder in found.values()):
        return found
    with _locked(lock):
        for folder in folders().values():
            if folder.is_dir() and not _noted_whole(folder):
                if wrong := find_damage(folder):
                    progress(f"the cached features in {folder} are damaged ({wrong}): they are removed and made again")
                    _remove(folder)
                else:
                    _note_whole(folder)
        if missing := [key for key, folder in folders().items() if not folder.is_dir()]:
            make(missing)
            for key in missing:
                _note_whole(folders()[key])
        return folders()


@contextmanager
def written_whole(folders: Mapping[Level, Path]) -> Iterator[dict[Level, Path]]:
    """Temporary folders, which take the names of absent ones, with manifests, when the block ends without an error.

    Raises ResourceError when the disk is full.
    """
    parts = {key: folder.with_name(f".{folder.name}.part") for key, folder in folders.items()}
    try:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        yield parts
        for key, part in parts.items():
            write_manifest(part)
            os.replace(part, folders[key])
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room(None, next(iter(folders.values())).parent) from error
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def remove_check_notes(root: Path) -> None:
    """Removes all notes below `root`: the content of all folders is checked at the next opening."""
    for note in root.glob(".*.whole-*"):
        note.unlink(missing_ok=True)


def _noted_whole(folder: Path) -> bool:
    try:
        return json.loads(_note(folder).read_bytes()) == _stamps(folder)
    except (OSError, ValueError):
        return False


def _note_whole(folder: Path) -> None:
    # Without a note the content is checked again.
    with suppress(OSError), replacing(_note(folder)) as file:
        file.write(json.dumps(_stamps(folder)).encode())


def _note(folder: Path) -> Path:
    """Path of the note of the present host since its start."""
    try:
        host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # Not on macOS.
        host = platform.node()
    return folder.with_name(f".{folder.name}.whole-{host}")


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and times of change of each file. A write changes the last one, which no program can set."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns] for name, one in stats.items()}


def _remove(folder: Path) -> None:
    """Renames a folder, so that no process finds it, then removes its files."""
    aside = folder.with_name(f".{folder.name}.damaged-{secrets.token_hex(8)}")
    folder.rename(aside)
    for left in (aside, *folder.parent.glob(f".{folder.name}.damaged-*")):
        shutil.rmtree(left, ignore_errors=True)
    for note in folder.parent.glob(f".{folder.name}.whole-*"):
        note.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which the kernel frees when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def no_room(needed: int | None, folder: Path) -> ResourceError:
    """The error for maps that do not fit on the disk of a folder; `needed` are their bytes, where these are known."""
    free = f"{folder} has {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"
    demand = f"take {needed / 2**30:.1f} GiB" if needed is not None else "do not fit on the disk"
    remedy = "make room, cache fewer levels, or set cache_features: false"
    return ResourceError(f"the cached features {demand}, {free}", remedy)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)
