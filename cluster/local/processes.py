"""Hosts out of plain processes, where there can be no namespaces: a loopback address each, and nothing else of their own.

They can be lost, but not cut off, since they share this machine's network.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from cluster.background import start_in_background
from cluster.local.machines import HEAD, Host, State
from cluster.local.ray_node import Ports
from mgmrn.errors import ResourceError
from pipeline.ports import EVERYWHERE, free_ports

MARK = "MGMRN_LOCAL_HOST"
"""In the environment of all processes of a host: tells them from all others."""
GONE_SECONDS = 20.0

_SUPERVISED = """\
while :; do
  "$@" || true
  sleep 1
done
"""
"""Runs a host's command again when it ends, as a cluster's own supervisor would do it."""


@dataclass(frozen=True)
class Processes:
    """The hosts of one group."""

    group: str
    prefix: str
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, compare=False)
    """Hosts that this very process started; it must ask after them, else they stay as zombies."""

    @classmethod
    def free(cls, group: str) -> Processes:
        """A group at addresses that nobody else is likely to have taken: loopback has millions."""
        first, second = (2 + secrets.randbelow(250) for _ in range(2))
        return cls(group, f"127.{first}.{second}")

    @property
    def addresses(self) -> str:
        return self.prefix

    @property
    def ports(self) -> Ports:
        """Free ones: processes of other clusters listen on the same machine."""
        return Ports(*free_ports(2, EVERYWHERE))

    @property
    def _ray_folder(self) -> Path:
        """Where Ray keeps its sockets, whose paths must be short."""
        return Path(tempfile.gettempdir()) / f"ray-{self.group}-{self.prefix.removeprefix('127.')}"

    def open(self) -> None:
        self._ray_folder.mkdir(mode=0o700)

    def ray_options(self, host: Host) -> Mapping[str, str]:
        agent, metrics, client = map(str, free_ports(3, EVERYWHERE))
        every = {"dashboard-agent-listen-port": agent, "metrics-export-port": metrics}
        head = {"ray-client-server-port": client, "temp-dir": str(self._ray_folder)}
        return every | (head if host.name == HEAD else {})

    def start(self, host: Host, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        start = ["sh", "-c", _SUPERVISED, host.name, *command]
        process = start_in_background(start, {**environment, MARK: self._mark(host)}, folder / "log")
        self.children[process.pid] = process
        return process.pid

    def inside(self, host: Host, command: Sequence[str]) -> list[str]:
        return ["env", f"{MARK}={self._mark(host)}", *command]

    def kill(self, host: Host) -> None:
        self._end(self._mark(host))
        if host.process in self.children:
            self.children.pop(host.process).wait(GONE_SECONDS)

    def cut(self, host: Host) -> None:
        raise ResourceError(
            f"the host {host.name} shares this machine's network and cannot be cut off", "bring the group up as root"
        )

    heal = cut

    def state(self, host: Host) -> State:
        return "up" if _of(self._mark(host)) else "lost"

    def close(self) -> None:
        self._end(self._mark())
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def _mark(self, host: Host | None = None) -> str:
        """Of a host; without one, how the marks of all hosts begin."""
        return f"{self.group} {self.prefix} {host.folder + ' ' if host else ''}"

    def _end(self, mark: str) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        while found := _of(mark):
            if time.monotonic() > deadline:
                pids = [process.pid for process in found]
                raise ResourceError(f"processes {pids} do not end", "end them by hand, and try again")
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, timeout=0.2)


def _of(mark: str) -> list[psutil.Process]:
    """All processes whose mark begins so."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
