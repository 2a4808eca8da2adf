"""A storage folder that is full or may not be written to: said in one sentence, before anything runs or as soon as it is found."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError

PROBE_BYTES = 2**16
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GO_ON = "the same command goes on from the last checkpoint"


class StorageError(ResourceError):
    """The storage is full or read-only. A run that meets it can be gone on with."""


def check_writable(folder: Path) -> None:
    """Writes and removes a small file there, or where the folder would be made.

    Raises:
        StorageError: when that fails.
    """
    probe = next(place for place in (folder, *folder.parents) if place.is_dir()) / ".mgmrn-writable"
    with explained(probe.parent):
        with replacing(probe) as file:
            file.write(os.urandom(PROBE_BYTES))
        probe.unlink()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into sentences, unless they name a file elsewhere.

    Args:
        folder: where the block writes.

    Raises:
        StorageError: in their place.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and not Path(error.filename).is_relative_to(folder):
            raise
        if error.errno in _FULL:
            raise StorageError(f"the storage folder {folder} is full", f"make room there; {_GO_ON}") from error
        if error.errno in _CLOSED:
            raise StorageError(
                f"the storage folder {folder} cannot be written to: {os.strerror(error.errno)}",
                f"make it writable, or name another with --storage; {_GO_ON}",
            ) from error
        raise
