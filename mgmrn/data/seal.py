"""The seal over the test sets: once closed, this process can obtain no test image, label or class.

The types `TuneData` and `FinalData` prevent mistakes; the seal prevents the rest. A trial of a search closes it before
it reads any data; then every way to the test sets raises or returns nothing. A seal cannot be opened again.
"""

from __future__ import annotations

_closed = False


class SealedError(RuntimeError):
    """A request for the test sets in a sealed process: a defect of the code, never a mistake of the user."""


def close_seal() -> None:
    """Closes the seal for the rest of this process."""
    global _closed
    _closed = True


def is_sealed() -> bool:
    """Whether the seal is closed."""
    return _closed


def check_open(what: str) -> None:
    """Refuses `what` in a sealed process. Raises SealedError when the seal is closed."""
    if _closed:
        raise SealedError(f"{what} is out of reach here: a tuning run or a trial must not see the test sets")
