"""Messages of workers to the driver, as files in the run's storage: notes on progress, and the failure that ends a run for good.

Ray Train restarts a worker group after any exception; one that finds a recorded failure, which would occur again, ends at once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError, UserError
from pipeline.train.storage import StorageError

RESERVED_BYTES = 2**14
SHOW_SECONDS = 0.5
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


def reserve_room(path: Path) -> None:
    """Reserves room on the disk for a note of failure, since the disk may be full when it is written."""
    with replacing(_reserve(path)) as file:
        file.write(bytes(RESERVED_BYTES))


def record_failure(path: Path, failure: Failure) -> None:
    """Writes the note atomically, into the reserved room on a full disk; the first of several ranks' notes stays."""

    def write() -> None:
        with replacing(path) as file:
            file.write(json.dumps(asdict(failure)).encode())

    if path.exists():
        return
    try:
        write()
    except OSError:
        _reserve(path).unlink(missing_ok=True)
        write()


def recorded_failure(path: Path) -> Failure | None:
    """Failure in the note; None without a note."""
    return Failure(**json.loads(path.read_text())) if path.exists() else None


def _reserve(path: Path) -> Path:
    return path.with_suffix(".room")


def note_taker(path: Path) -> Callable[[str], None]:
    """A function that notes a sentence, at most one every few seconds."""
    last = float("-inf")

    def note(sentence: str) -> None:
        nonlocal last
        if time.monotonic() - last < LEAST_SECONDS_BETWEEN:
            return
        last = time.monotonic()
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{sentence}\n")

    return note


@contextmanager
def shown_notes(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Says every note that is taken while the context lasts."""
    over = threading.Event()
    offset = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        nonlocal offset
        last_look = False
        while not last_look:
            last_look = over.wait(SHOW_SECONDS)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                offset += len(whole)
                for line in whole.decode().splitlines():
                    say(line)

    thread = threading.Thread(target=follow, name="notes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
