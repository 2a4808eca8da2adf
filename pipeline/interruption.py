"""Signals that end a command: Ctrl-C, SIGTERM (Slurm, Kubernetes, `timeout`, systemd) and SIGHUP, all in the same way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signal → `mgmrn.stop_reason` of the runs that it ends."""


class Interruption(BaseException):
    """Raised in the main thread at the first signal of `REASONS`. No `KeyboardInterrupt`, which Click turns into an exit of its own."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        return 128 + self.signal

    @property
    def reason(self) -> str:
        return REASONS[self.signal]


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raises `Interruption` at the first signal within the context; the second one ends the process at once."""
    before = _handlers()
    for number in before:
        # An ignored SIGINT, which background jobs of a script inherit, is handled: `stop` sends it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raises the `Interruption` that compiled code of Ray's turned into a `SystemError`."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Interruption):
            raise error.__cause__ from None
        raise


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restores the handlers of these signals after a block that ends without an error.

    `ray.init` takes SIGTERM for itself, and `ray.shutdown` removes its handler in C, where `signal.getsignal` does not see that.
    """
    before = _handlers()
    yield
    _restore(before)


def _handlers() -> dict[signal.Signals, Any]:
    """Handlers of `REASONS`; none outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in REASONS}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    for other in REASONS:
        signal.signal(other, signal.SIG_DFL)
    raise Interruption(number)
