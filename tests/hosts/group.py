"""Several hosts on one machine: a Ray head without CPUs, and workers of one CPU each that can be killed, cut off and replaced."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts.namespaces import HostError, Namespaces, refusal
from tests.hosts.ray_node import Head, write_token

HEAD = "head"
JOIN_TIMEOUT_S = 180.0
"""A host joins in three seconds on a quiet machine, in a minute on a busy one."""
POLL_S = 0.2


@contextmanager
def host_group(folder: Path, workers: int) -> Iterator[HostGroup]:
    """A head and some workers that have joined it, removed afterwards; skips where no network namespaces can be made."""
    if reason := refusal():
        pytest.skip(f"several hosts on one machine need network namespaces: {reason}")
    namespaces = Namespaces.open(f"t{uuid.uuid4().hex[:6]}")
    try:
        hosts = HostGroup(namespaces, folder)
        hosts.start(workers)
        yield hosts
    finally:
        namespaces.close()


class HostGroup:
    """The hosts of one test."""

    def __init__(self, namespaces: Namespaces, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.namespaces = namespaces
        self._folder = folder
        self._heads = self._workers = 0
        self._addresses: dict[str, str] = {}
        self._logs: dict[str, Path] = {}
        self.head = Head(f"{namespaces.prefix}.2", write_token(folder / "token"))

    @property
    def names(self) -> set[str]:
        """Names of all hosts that were started and not killed; a head stays until another takes its place."""
        return set(self._addresses)

    def start(self, workers: int) -> None:
        """Start the head and some workers, and wait until Ray has them all."""
        self._start_head()
        self._wait(self.head.answers, HEAD)
        self._wait_for(HEAD, *(self._start_worker() for _ in range(workers)))

    def add(self) -> str:
        """Start one more worker, wait until it has joined, and return its name."""
        name = self._start_worker()
        self._wait_for(name)
        return name

    def kill(self, name: str) -> None:
        """Take a host's power away: its processes end, and close no connection."""
        self.namespaces.kill(name)
        if name != HEAD:
            del self._addresses[name]

    def replace_head(self) -> None:
        """Start another head at the address of the killed one; workers join it by themselves."""
        self._start_head()
        self._wait_for(HEAD)

    def inside(self, name: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Command line that runs a command on a host, and its environment."""
        return self.namespaces.inside(name, command), self._environment(name)

    def in_ray(self) -> set[str]:
        """Names of the hosts that Ray counts as alive; it notices a loss some seconds late."""
        alive = self.head.alive()
        return {name for name, address in self._addresses.items() if address in alive}

    def _start_head(self) -> None:
        self._heads += 1
        self._start(HEAD, f"{HEAD}{self._heads}", self.head.address, self.head.start_command(cpus=0))

    def _start_worker(self) -> str:
        self._workers += 1
        name, address = f"w{self._workers}", f"{self.namespaces.prefix}.{2 + self._workers}"
        self._start(name, name, address, self.head.join_command(address, cpus=1))
        return name

    def _start(self, name: str, folder: str, address: str, command: Sequence[str]) -> None:
        self._addresses[name] = address
        self._logs[name] = self._folder / folder / "log"
        self.namespaces.start(name, address, command, self._environment(name), self._folder / folder)

    def _environment(self, name: str) -> dict[str, str]:
        """The caller's environment; drivers run on the head, so the head alone gets the credentials of the tracking server."""
        return self.head.host_environment(os.environ, *([] if name == HEAD else ["MLFLOW_"]))

    def _wait_for(self, *names: str) -> None:
        wanted = {self._addresses[name] for name in names}
        self._wait(lambda: wanted <= self.head.alive(), *names)

    def _wait(self, condition: Callable[[], bool], *names: str) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not condition():
            lost = [name for name in names if self.namespaces.has_ended(name)]
            if lost or time.monotonic() > deadline:
                logs = "\n".join(f"{name}: {self._logs[name].read_text()[-500:]}" for name in lost or names)
                raise HostError(f"hosts did not come up:\n{logs}")
            time.sleep(POLL_S)
