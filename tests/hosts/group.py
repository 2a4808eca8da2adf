"""Several hosts on one machine: a Ray head without CPUs, and workers of one CPU each that can be killed, cut off and replaced."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts.namespaces import HostError, Namespaces

HEAD = "head"
JOIN_TIMEOUT_S = 180.0
"""A host joins in three seconds on a quiet machine, in a minute on a busy one."""
POLL_S = 0.2


@contextmanager
def host_group(folder: Path, workers: int) -> Iterator[HostGroup]:
    """A head and some workers that have joined it, removed afterwards; skips where no network namespaces can be made."""
    try:
        namespaces = Namespaces.open(f"t{uuid.uuid4().hex[:6]}")
    except HostError as error:
        pytest.skip(f"several hosts on one machine need network namespaces: {error}")
    try:
        yield HostGroup(namespaces, folder, workers)
    finally:
        namespaces.close()


class HostGroup:
    """The hosts of one test: the head and some workers, which Ray has all when this is made."""

    def __init__(self, namespaces: Namespaces, folder: Path, workers: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.namespaces = namespaces
        self._folder = folder
        self._heads = self._workers = 0
        self._addresses: dict[str, str] = {}
        self._logs: dict[str, Path] = {}
        self.head = Head(f"{namespaces.prefix}.2", write_token(folder / "token"))
        self.replace_head()
        self._wait(*(self._start_worker() for _ in range(workers)))

    @property
    def names(self) -> set[str]:
        """Names of all hosts that were started and not killed; a head stays until another takes its place."""
        return set(self._addresses)

    def add(self) -> str:
        """Start one more worker, wait until it has joined, and return its name."""
        name = self._start_worker()
        self._wait(name)
        return name

    def kill(self, name: str) -> None:
        """Take a host's power away: its processes end, and close no connection."""
        self.namespaces.kill(name)
        if name != HEAD:
            del self._addresses[name]

    def replace_head(self) -> None:
        """Start a head at the address of the one that was killed, if any; workers join it by themselves."""
        self._heads += 1
        self._start(HEAD, f"{HEAD}{self._heads}", self.head.address, self.head.start_command(cpus=0))
        self._wait(HEAD)

    def in_ray(self) -> set[str]:
        """Names of the hosts that Ray counts as alive; it notices a loss some seconds late."""
        alive = self.head.alive()
        return {name for name, address in self._addresses.items() if address in alive}

    def _start_worker(self) -> str:
        self._workers += 1
        name, address = f"w{self._workers}", f"{self.namespaces.prefix}.{2 + self._workers}"
        self._start(name, name, address, self.head.join_command(address, cpus=1))
        return name

    def _start(self, name: str, folder: str, address: str, command: Sequence[str]) -> None:
        self._addresses[name] = address
        self._logs[name] = self._folder / folder / "log"
        # Drivers run on the head, so the head alone gets the credentials of the tracking server.
        environment = self.head.host_environment(os.environ, *([] if name == HEAD else ["MLFLOW_"]))
        self.namespaces.start(name, address, command, environment, self._folder / folder)

    def _wait(self, *names: str) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not {self._addresses[name] for name in names} <= self.head.alive():
            lost = [name for name in names if self.namespaces.has_ended(name)]
            if lost or time.monotonic() > deadline:
                logs = "\n".join(f"{name}: {self._logs[name].read_text()[-500:]}" for name in lost or names)
                raise HostError(f"hosts did not come up:\n{logs}")
            time.sleep(POLL_S)


ANSWER_TIMEOUT_S = 5.0
BINARIES = Path(sys.executable).parent

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Other processes of the machine may take its memory.
    "RAY_memory_monitor_refresh_ms": "0",
    # A lost host is noticed after 3 to 6 seconds instead of 14.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Head:
    address: str
    token: Path
    port: int = 6379
    dashboard_port: int = 8265

    @property
    def dashboard(self) -> str:
        """Address of the dashboard, which is also the job server."""
        return f"http://{self.address}:{self.dashboard_port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """Variables of a command on this machine that talks to the head."""
        return {
            "RAY_ADDRESS": f"{self.address}:{self.port}",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": _SETTINGS["RAY_AUTH_MODE"],
            "RAY_AUTH_TOKEN_PATH": str(self.token),
        }

    def host_environment(self, inherited: Mapping[str, str], *foreign: str) -> dict[str, str]:
        """Environment of Ray's processes on a host."""
        kept = {name: value for name, value in inherited.items() if not name.startswith(("RAY_", *foreign))}
        # Jobs find Ray by the path.
        path = os.pathsep.join(dict.fromkeys((str(BINARIES), *kept.get("PATH", os.defpath).split(os.pathsep))))
        return {**kept, **_SETTINGS, "RAY_AUTH_TOKEN_PATH": str(self.token), "PATH": path}

    def start_command(self, cpus: int, **options: str) -> list[str]:
        """`ray start --head`, which ends when Ray does; `options` by name, with underscores."""
        role = {"port": str(self.port), "dashboard-host": self.address, "dashboard-port": str(self.dashboard_port)}
        more = {name.replace("_", "-"): value for name, value in options.items()}
        return _ray_start(self.address, cpus, role | more, "--head")

    def join_command(self, address: str, cpus: int) -> list[str]:
        """`ray start` of a worker at an address, which ends when Ray does."""
        return _ray_start(address, cpus, {"address": f"{self.address}:{self.port}"})

    def alive(self) -> frozenset[str]:
        """Addresses of the hosts that Ray counts as alive; empty while the head does not answer."""
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        request = urllib.request.Request(f"{self.dashboard}/api/v0/nodes", headers=headers)
        # No proxy: these hosts are on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError, LookupError, TypeError):
            return frozenset()
        return frozenset(node["node_ip"] for node in nodes if node["state"] == "ALIVE")


def write_token(file: Path) -> Path:
    """Write a new random token, readable by its owner only."""
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    return file


def _ray_start(address: str, cpus: int, options: Mapping[str, str], *flags: str) -> list[str]:
    own = {
        "node-ip-address": address,
        "num-cpus": str(cpus),
        "num-gpus": "0",
        "object-store-memory": str(200 * 2**20),
        # It carries workers' output to drivers, which no test reads.
        "include-log-monitor": "false",
    }
    words = [f"--{name}={value}" for name, value in {**own, **options}.items()]
    return [str(BINARIES / "ray"), "start", *flags, "--block", "--disable-usage-stats", *words]
