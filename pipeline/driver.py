"""Who leads a run: a driver's name, and whether it still lives, wherever it does.

A driver of this host is looked up among its processes. One of another host is listened to: as long as it lives it counts in a file beside
its runs, in the storage that every host sees. No clock is compared with another's, and no lock of a shared file system is relied on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

FOLDER = "drivers"
BEAT_SECONDS = 3.0
SILENCE_SECONDS = 15.0
"""A driver that does not count for so long is taken for dead. Shared file systems may show a change some seconds late."""
LISTEN_SECONDS = 0.5
REMEMBER_SECONDS = 30.0
"""How long an answer about a driver elsewhere is good for: a grid asks about many runs of one driver."""


@dataclass(frozen=True)
class Driver:
    """One process among all that ever ran on any host."""

    host: str
    pid: int
    start: float
    """Seconds, by a clock of its host that nobody sets."""
    beat: Path | None = None
    """Where it counts while it leads runs."""

    @classmethod
    def here(cls) -> Driver:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), round(_start(os.getpid()), 2), _beats[-1] if _beats else None)

    @classmethod
    def parse(cls, tag: str) -> Driver | None:
        """As a run carries it; None for what is no driver's name."""
        host, _, rest = tag.partition(":")
        pid, _, rest = rest.partition(":")
        start, _, beat = rest.partition(":")
        try:
            return cls(host, int(pid), float(start), Path(beat) if beat else None)
        except ValueError:
            return None

    def __str__(self) -> str:
        """`host:pid:start`, and where it counts."""
        return f"{self.host}:{self.pid}:{self.start:.2f}" + (f":{self.beat}" if self.beat else "")

    @property
    def is_this_process(self) -> bool:
        """Whether it is the one that asks."""
        return self.host == socket.gethostname() and self.pid == os.getpid() and not self.is_dead

    @property
    def is_dead(self) -> bool:
        """Whether it lives no more; one elsewhere that cannot be listened to is taken to live."""
        if self.host == socket.gethostname():
            return not _runs(self.pid, self.start)
        return self.beat is not None and _is_silent(self.beat)


def driver_tag() -> str:
    """This process, as a run carries it."""
    return str(Driver.here())


def driver_is_dead(tag: str) -> bool:
    """Whether the driver that a run carries lives no more; a run without one is nobody's to take."""
    driver = Driver.parse(tag)
    return driver is not None and driver.is_dead


@contextmanager
def heartbeat(storage: Path) -> Iterator[None]:
    """Lets drivers on other hosts know that this one lives, as long as the context lasts.

    Args:
        storage: a folder that they see under the same path. Within another heartbeat of this process, that one serves.
    """
    if _beats:
        yield
        return
    folder = storage.resolve() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Driver.here()}".replace(":", "-")
    over = threading.Event()
    path.write_text("0")

    def count() -> None:
        number = 0
        while not over.wait(BEAT_SECONDS):
            number += 1
            # A storage that is full or away for a while is the business of those who keep something there.
            with suppress(OSError):
                path.write_text(str(number))

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
            path.unlink()


_beats: list[Path] = []
"""Where this process counts, if it does."""
_heard: dict[Path, tuple[float, bool]] = {}
"""When a driver was listened to, and whether it was silent."""


def _is_silent(beat: Path) -> bool:
    """Listens until the count changes, or for `SILENCE_SECONDS`. A driver that has ended has taken its file along."""
    when, silent = _heard.get(beat, (float("-inf"), False))
    if time.monotonic() - when < REMEMBER_SECONDS:
        return silent
    first, deadline = _count(beat), time.monotonic() + SILENCE_SECONDS
    silent = first is not None or (beat.parent.name == FOLDER and beat.parent.is_dir())
    while first is not None and time.monotonic() < deadline:
        time.sleep(LISTEN_SECONDS)
        if _count(beat) != first:
            silent = False
            break
    _heard[beat] = time.monotonic(), silent
    return silent


def _count(beat: Path) -> bytes | None:
    """None where there is no such file, or one that no driver counts in: a run's tags may say anything."""
    try:
        if beat.parent.name != FOLDER or not beat.is_file():
            return None
        with beat.open("rb") as file:
            return file.read(32)
    except OSError:
        return None


def _runs(pid: int, start: float) -> bool:
    try:
        return bool(abs(_start(pid) - start) <= 1 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _start(pid: int) -> float:
    """Seconds at which a process began: after the machine's own start, which no setting of the clock moves, where `/proc` tells that.

    Raises:
        psutil.NoSuchProcess: when there is no such process.
    """
    try:
        after_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return int(after_the_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float(psutil.Process(pid).create_time())
