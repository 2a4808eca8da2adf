"""Drivers of runs: the tag that names one, and whether it lives, on whatever host.

A driver of this host is looked up among its processes; one elsewhere counts, while it lives, in a heartbeat file in the shared storage.
No clock is compared with another's, and no lock of a shared file system is relied on.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from pipeline.storage import StoragePath

FOLDER = "drivers"
BEAT_SECONDS = 3.0
HEARTBEAT_TIMEOUT_S = 15.0
"""Seconds without a heartbeat after which a driver counts as dead. Shared file systems may show a change some seconds late."""
LISTEN_SECONDS = 0.5
REMEMBER_SECONDS = 30.0
"""Seconds for which an answer about a driver elsewhere holds: a grid asks about many runs of one driver."""

_beats: list[StoragePath] = []
_heard: dict[StoragePath, tuple[float, bool]] = {}
"""Time at which a heartbeat file was watched, and whether it was silent."""


@dataclass(frozen=True)
class Driver:
    """One process among all that ever ran on any host."""

    host: str
    pid: int
    start: float
    """Start time in seconds of the host's monotonic clock."""
    beat: StoragePath | None = None
    """Path of the driver's heartbeat file; None while it leads no runs."""

    @classmethod
    def here(cls) -> Self:
        return cls(socket.gethostname(), os.getpid(), round(_start(os.getpid()), 2), _beats[-1] if _beats else None)

    @classmethod
    def parse(cls, tag: str) -> Self | None:
        """Driver of a run's tag; None for a text that is no driver's tag."""
        try:
            host, pid, start, *beat = tag.split(":", 3)
            return cls(host, int(pid), float(start), StoragePath(beat[0]) if any(beat) else None)
        except ValueError:
            return None

    def __str__(self) -> str:
        """Tag: `host:pid:start`, and the heartbeat file."""
        return f"{self.host}:{self.pid}:{self.start:.2f}" + (f":{self.beat}" if self.beat else "")

    @property
    def is_local(self) -> bool:
        """Whether the driver runs, or ran, on this host."""
        return self.host == socket.gethostname()

    @property
    def is_this_process(self) -> bool:
        return self.is_local and self.pid == os.getpid() and not self.is_dead

    @property
    def is_dead(self) -> bool:
        """Whether the driver has ended; one elsewhere without a readable heartbeat file counts as living."""
        if self.is_local:
            return not _runs(self.pid, self.start)
        return self.beat is not None and _is_silent(self.beat)


def driver_tag() -> str:
    """Tag of this process."""
    return str(Driver.here())


def driver_is_dead(tag: str) -> bool:
    """Whether the driver of a run's tag has ended; a text that is no tag names no dead driver."""
    driver = Driver.parse(tag)
    return driver is not None and driver.is_dead


@contextmanager
def heartbeat(storage: StoragePath) -> Iterator[None]:
    """Counts in a file below `storage`, which drivers on other hosts see, as long as the context lasts; in nested ones the first serves."""
    if _beats:
        yield
        return
    path = storage.absolute() / FOLDER / f"{Driver.here()}".replace(":", "-")
    over = threading.Event()
    path.write(b"0")

    def count() -> None:
        number = 0
        while not over.wait(BEAT_SECONDS):
            number += 1
            # A full or absent storage is reported by those who keep something there.
            with suppress(OSError):
                path.try_write(b"%d" % number)

    thread = threading.Thread(target=count, name="heartbeat", daemon=True)
    _beats.append(path)
    thread.start()
    try:
        yield
    finally:
        _beats.pop()
        over.set()
        thread.join()
        with suppress(OSError):
            path.delete()


def _is_silent(beat: StoragePath) -> bool:
    """Whether a driver's heartbeat has stopped. A storage that cannot be read says nothing about the driver."""
    when, silent = _heard.get(beat, (float("-inf"), False))
    if time.monotonic() - when < REMEMBER_SECONDS:
        return silent
    silent = False
    # Files elsewhere are not read: a run's tags may name any.
    if beat.parent.name == FOLDER:
        with suppress(OSError):
            silent = _stays(beat)
    _heard[beat] = time.monotonic(), silent
    return silent


def _stays(beat: StoragePath) -> bool:
    """Whether the count stays for `HEARTBEAT_TIMEOUT_S`, or the file is gone: a driver that has ended has deleted it.

    The time starts again after a look that took long: a storage that was away from here may have been away from the driver.
    """
    first, deadline = beat.read(), time.monotonic() + HEARTBEAT_TIMEOUT_S
    if first is None:
        return beat.parent.exists()
    while (begun := time.monotonic()) < deadline:
        if beat.read() != first:
            return False
        if time.monotonic() - begun > BEAT_SECONDS:
            deadline = time.monotonic() + HEARTBEAT_TIMEOUT_S
        time.sleep(LISTEN_SECONDS)
    return True


def _runs(pid: int, start: float) -> bool:
    try:
        return bool(abs(_start(pid) - start) <= 1 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _start(pid: int) -> float:
    """Seconds at which a process began, after the start of the machine where `/proc` tells that: no setting of the clock moves those."""
    try:
        after_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return int(after_the_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float(psutil.Process(pid).create_time())
