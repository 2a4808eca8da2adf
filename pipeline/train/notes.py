"""Words of a worker for the person at the driver: what takes long before the first epoch.

Rank 0 appends to a file in the run's storage; a thread of the driver shows what is new. Nothing is tracked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SHOW_SECONDS = 0.5
LEAST_SECONDS_BETWEEN = 5.0


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
        while True:
            last_look = over.wait(SHOW_SECONDS)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                offset += len(whole)
                for line in whole.decode().splitlines():
                    say(line)
            if last_look:
                return

    thread = threading.Thread(target=follow, name="notes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
