"""A Python process that does nothing else: what it prints, and how it is halted while another one is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import UserError
from pipeline.tracking.environment import REPOSITORY

FAREWELL_SECONDS = 30.0
"""What a process that is interrupted may take to end what it started."""

Span = tuple[float, float]
"""Beginning and end, in seconds since 1970."""


def printed_by(*arguments: str) -> str:
    """Standard output of `python ARGUMENTS` in the present folder.

    Raises:
        UserError: with the end of its standard error, when it failed.
    """
    with FreshProcess(*arguments) as process:
        return process.printed()


class FreshProcess:
    """`python ARGUMENTS` in the present folder, in a session of its own. Left as a context, it is ended with all that it started.

    Args:
        arguments: for the interpreter.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  # Closed with the context.
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )
        self.halts: list[Span] = []
        """When it stood still."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(FAREWELL_SECONDS)
        _signal(family, signal.SIGKILL)
        self._process.wait()
        self._output.close()
        self._errors.close()

    def ends_within(self, seconds: float) -> bool:
        """Waits for its end, or as long as is said."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def printed_so_far(self) -> str:
        """What it wrote to standard output."""
        return os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0).decode()

    def printed(self) -> str:
        """All that it wrote to standard output, when it has ended.

        Raises:
            UserError: with the end of its standard error, when it failed.
        """
        if code := self._process.wait():
            self._errors.seek(0)
            last = next(reversed(self._errors.read().strip().splitlines()), f"exit code {code}")
            raise UserError(
                f"a command that was to be measured failed: {last}",
                " ".join(self._arguments[:3]),
                "run it by itself to see more",
            )
        return self.printed_so_far()

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stops it and all that it started, as long as the context lasts."""
        stopped: set[psutil.Process] = set()
        while new := set(self._family()) - stopped:  # One that is not stopped yet may start another.
            stopped |= new
            _signal(new, signal.SIGSTOP)
        begin = time.time()
        try:
            yield
        finally:
            self.halts.append((begin, time.time()))
            _signal(stopped, signal.SIGCONT)

    def _family(self) -> list[psutil.Process]:
        """The process and its descendants; none where it has ended."""
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
