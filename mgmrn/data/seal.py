"""The seal over the test sets: once closed, this process can no longer obtain a test image, label or class.

Two types (`TuneData`, `FinalData`) keep honest code honest. The seal is for code that is not: a trial of a search closes it before it reads
any data, and from then on every way to the test sets raises or comes back empty. There is no way to open it again.
"""

from __future__ import annotations

_closed = False


class SealedError(RuntimeError):
    """Something in a sealed process asked for the test sets; always a defect, never the user's mistake."""


def close_seal() -> None:
    """Closes the seal for the rest of this process's life."""
    global _closed
    _closed = True


def is_sealed() -> bool:
    """Whether this process may not see the test sets."""
    return _closed


def check_open(what: str) -> None:
    """Refuses `what` in a sealed process.

    Raises:
        SealedError: when the seal is closed.
    """
    if _closed:
        raise SealedError(
            f"{what} is out of reach here: a tuning run or a trial of a search must not see the test sets"
        )
