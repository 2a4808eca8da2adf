"""Messages of workers to the driver: notes on progress in the run's spool, and in a file the failure that ends a run for good.

Ray Train restarts a worker group after any exception; one that finds a recorded failure, which would occur again, ends at once.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from mgmrn.errors import ResourceError, UserError
from pipeline.spool import Spool
from pipeline.storage import StorageError, StoragePath

RESERVED_BYTES = 2**14
LEAST_SECONDS_BETWEEN = 5.0


@dataclass(frozen=True)
class Failure:
    """Failure that ended a run for good."""

    reason: str
    """`bad-input`, `cannot-run-here`, `damaged-checkpoint`, `non-finite-loss`, `out-of-memory`, `storage` or `workers-lost`."""
    message: str
    where: str = ""
    hint: str = ""

    @classmethod
    def of_resources(cls, error: ResourceError) -> Self:
        return cls("storage" if isinstance(error, StorageError) else "cannot-run-here", error.message, hint=error.hint)

    def about(self, run: str) -> str:
        return f"error: {run}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    @property
    def mistake(self) -> UserError | ResourceError | None:
        """Error that the user must mend before anything else; None for other failures."""
        if self.reason == "bad-input":
            return UserError(self.message, self.where, self.hint)
        if self.reason == "cannot-run-here":
            return ResourceError(self.message, self.hint)
        return self.of_storage

    @property
    def of_storage(self) -> StorageError | None:
        """Error of the storage, which all runs of a launch share; None for other failures. All runs can continue later."""
        return StorageError(self.message, self.hint) if self.reason == "storage" else None


def reserve_room(path: StoragePath) -> None:
    """Reserves room for a note of failure, since the storage may be full when it is written."""
    _reserve(path).write(bytes(RESERVED_BYTES))


def record_failure(path: StoragePath, failure: Failure) -> None:
    """Writes the note, into the reserved room where the storage is full; the first of several ranks' notes stays."""
    if path.exists():
        return
    note = json.dumps(asdict(failure)).encode()
    try:
        path.write(note)
    except OSError:
        _reserve(path).delete()
        path.write(note)


def recorded_failure(path: StoragePath) -> Failure | None:
    """Failure in the note; None without a note."""
    note = path.read()
    return None if note is None else Failure(**json.loads(note))


def _reserve(path: StoragePath) -> StoragePath:
    return path.parent / f"{path.name}.room"


def note_taker(spool: Spool) -> Callable[[str], None]:
    """A function that notes a sentence for the person at the driver, at most one every few seconds."""
    last = float("-inf")

    def note(sentence: str) -> None:
        nonlocal last
        if time.monotonic() - last < LEAST_SECONDS_BETWEEN:
            return
        last = time.monotonic()
        spool.append_note(sentence)

    return note
