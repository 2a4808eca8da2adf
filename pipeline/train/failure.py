"""Failures that a retry cannot mend, told from those that it can.

Ray Train restarts a worker group after any exception. A bad config, a broken picture, a loss that is not a number or a
device without memory would fail again; so the worker that meets one leaves a note in the run's storage, and the
restarted group reads it and ends at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError, UserError
from pipeline.train.storage import StorageError

RESERVED_BYTES = 2**14


@dataclass(frozen=True)
class Failure:
    """Why a run ended for good."""

    reason: str
    """`bad-input`, `cannot-run-here`, `damaged-checkpoint`, `non-finite-loss`, `out-of-memory`, `storage` or `workers-lost`.

    The run's `mgmrn.stop_reason`.
    """
    message: str
    where: str = ""
    hint: str = ""

    @property
    def mistake(self) -> UserError | ResourceError | None:
        """The error that a worker raised, where the user must mend something first; None for other failures."""
        if self.reason == "bad-input":
            return UserError(self.message, self.where, self.hint)
        if self.reason == "cannot-run-here":
            return ResourceError(self.message, self.hint)
        return self.of_storage

    @property
    def of_storage(self) -> StorageError | None:
        """The error, where the storage is at fault, which all runs of a launch share; none is lost, and all can go on later."""
        return StorageError(self.message, self.hint) if self.reason == "storage" else None


def reserve_room(path: Path) -> None:
    """Sees to it that a note can be left on a disk that is full by then."""
    with replacing(_reserve(path)) as file:
        file.write(bytes(RESERVED_BYTES))


def record_failure(path: Path, failure: Failure) -> None:
    """Leaves the note, atomically; the first of several ranks' notes stays.

    Raises:
        OSError: when it cannot be written, not even into the room that was reserved for it.
    """
    if path.exists():
        return
    try:
        _write(path, failure)
    except OSError:
        _reserve(path).unlink(missing_ok=True)
        _write(path, failure)


def _write(path: Path, failure: Failure) -> None:
    with replacing(path) as file:
        file.write(json.dumps(asdict(failure)).encode())


def _reserve(path: Path) -> Path:
    return path.with_suffix(".room")


def recorded_failure(path: Path) -> Failure | None:
    """The note, where there is one."""
    return Failure(**json.loads(path.read_text())) if path.exists() else None
