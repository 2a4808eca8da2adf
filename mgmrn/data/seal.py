"""The seal over the test sets: once closed, this process can obtain no test image, label or class.

The types `TuneData` and `FinalData` prevent mistakes; the seal prevents the rest. A process of a search closes it before
it reads any data, and it stays closed; any other process closes it for the length of a `tune` run. Then every way to the test sets raises
or returns nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_closed = False


class SealedError(RuntimeError):
    """A request for the test sets in a sealed process: a defect of the code, never a mistake of the user."""


def close_seal() -> None:
    """Closes the seal for the rest of this process."""
    global _closed
    _closed = True


@contextmanager
def sealed() -> Iterator[None]:
    """Closes the seal for a block; one that was closed before stays closed after it."""
    global _closed
    before, _closed = _closed, True
    try:
        yield
    finally:
        _closed = before


def is_sealed() -> bool:
    """Whether the seal is closed."""
    return _closed


def check_open(what: str) -> None:
    """Refuses `what` in a sealed process. Raises SealedError when the seal is closed."""
    if _closed:
        raise SealedError(f"{what} is out of reach here: a tuning run or a trial must not see the test sets")
