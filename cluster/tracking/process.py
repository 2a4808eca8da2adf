"""A server as a child of this process: started with a log file, waited for until it answers, ended without leftovers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster.background import start_in_background
from mgmrn.errors import ResourceError, UserError

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0
"""How long a server may take to end before it is killed."""


class ServerProcess:
    """A running server and its descendants.

    Args:
        name: for messages.
        command: what is run.
        environment: all of it.
        log: takes both outputs, after what stands there.
        user: whom it runs as; None: as this process does.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, user: str | None = None
    ) -> None:
        self._name = name
        self._log = log
        # A session of its own: Ctrl-C reaches this process alone, which then ends its servers in their order.
        self._process = start_in_background(command, environment, log, user)

    @property
    def pid(self) -> int:
        """Of the process that was started, which leads its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def wait_until(self, answers: Callable[[], bool], seconds: float) -> None:
        """Waits until the server answers.

        Raises:
            ResourceError: when it ended instead, or did not answer in time.
        """
        deadline = time.monotonic() + seconds
        while not answers():
            if not self.alive:
                raise ResourceError(f"{self._name} ended at its start: {self._last_line()}", f"see {self._log}")
            if time.monotonic() >= deadline:
                self.stop(signal.SIGTERM)
                raise ResourceError(f"{self._name} did not answer within {seconds:.0f} s", f"see {self._log}")
            time.sleep(POLL_SECONDS)

    def stop(self, polite: signal.Signals) -> None:
        """Asks the server to end, and kills what is left of its group after `GRACE_SECONDS`."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, polite)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the whole group at once, as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _last_line(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


def check_free(host: str, port: int, option: str) -> None:
    """Says before anything is started that a server could not listen there.

    Raises:
        UserError: when the port is taken, or the address is none of this machine.
    """
    try:
        with socket.socket() as listener:
            # As servers do: a port that was closed a moment ago is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"nothing can listen at {host}:{port}: {error}", option, "name another one") from error
