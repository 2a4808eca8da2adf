"""Hosts out of network namespaces: each is lost like a machine, and can be cut off like one. Needs root."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from cluster.background import start_in_background
from cluster.local import commands
from cluster.local.commands import Command, Network
from cluster.local.machines import Host, State
from cluster.local.ray_node import Ports
from mgmrn.errors import ResourceError

LOCK = Path("/run/mgmrn-local.lock")
"""Held while a free subnet is looked for and taken."""
SUBNETS = tuple(f"10.201.{number}" for number in range(256))
GONE_SECONDS = 20.0
WAIT_SECONDS = 2.0
"""What those who wait for a process get to notice that it has ended."""
TOOLS = ("ip", "unshare", "nsenter", "hostname")


def refusal() -> str | None:
    """Why there can be no namespaces here, found by making one of each kind; None where there can."""
    if os.geteuid() != 0:
        return "not root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {' and no '.join(missing)} on this machine"
    trial = Network(f"p{os.getpid() % 10**6}", "")
    steps = [
        ["ip", "link", "add", trial.bridge, "type", "bridge"],
        ["ip", "netns", "add", trial.namespace("x")],
        ["ip", "link", "add", trial.cable("x"), "type", "veth", "peer", "name", "eth0", "netns", trial.namespace("x")],
        [
            "unshare",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--fork",
            "--mount-proc",
            "mount",
            "-t",
            "tmpfs",
            "x",
            "/mnt",
        ],
    ]
    try:
        for step in steps:
            _run(step)
    except ResourceError as error:
        return error.message
    finally:
        for step in (*commands.unplug(trial, "x"), commands.remove_bridge(trial)):
            _try(step)
    return None


@dataclass(frozen=True)
class Namespaces:
    """The hosts of one group."""

    network: Network
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, compare=False)
    """Hosts that this very process started; it must ask after them, else they stay as zombies."""

    @classmethod
    @contextmanager
    def free(cls, group: str) -> Iterator[Namespaces]:
        """A group in a subnet that nobody uses; nobody else takes it before the context's end."""
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield cls(Network(group, _free_subnet()))

    @property
    def addresses(self) -> str:
        return self.network.prefix

    @property
    def ports(self) -> Ports:
        """Ray's own defaults: on its network the head is alone."""
        return Ports(6379, 8265)

    def open(self) -> None:
        for command in commands.make_bridge(self.network):
            _run(command)

    def ray_options(self, host: Host) -> Mapping[str, str]:
        return {}

    def start(self, host: Host, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
        own = folder / "ray"
        own.mkdir(parents=True, exist_ok=True)
        for step in commands.plug_in(self.network, host.name, host.address):
            _run(step)
        start = commands.start(self.network, host.name, host.hostname, own.resolve(), command)
        process = start_in_background(start, environment, folder / "log")
        self.children[process.pid] = process
        return process.pid

    def inside(self, host: Host, command: Sequence[str]) -> list[str]:
        (first,) = psutil.Process(host.process).children()
        return commands.enter(self.network, host.name, first.pid, command)

    def kill(self, host: Host) -> None:
        # First the cable: a machine that loses power does not say goodbye on its connections.
        _try(commands.set_cable(self.network, host.name, "down"))
        self._remove(host.name)
        if host.process in self.children:
            self.children.pop(host.process).wait(GONE_SECONDS)

    def cut(self, host: Host) -> None:
        _run(commands.set_cable(self.network, host.name, "down"))

    def heal(self, host: Host) -> None:
        _run(commands.set_cable(self.network, host.name, "up"))

    def state(self, host: Host) -> State:
        if host.process in self.children:
            self.children[host.process].poll()
        if not _pids(self.network, host.name):
            return "lost"
        (cable,) = _json(["ip", "-json", "link", "show", self.network.cable(host.name)])
        return "up" if "UP" in cable["flags"] else "cut off"

    def close(self) -> None:
        for namespace in _namespaces():
            if namespace.startswith(self.network.namespaces):
                self._remove(namespace.removeprefix(self.network.namespaces))
        _try(commands.remove_bridge(self.network))

    def _remove(self, host: str) -> None:
        """Ends all that runs in a namespace, and removes it.

        A host's first process takes all others along, and is waited for by the one that started it, which gets the time for that.
        """
        start, own = time.monotonic(), _pid_namespace(os.getpid())
        while pids := _pids(self.network, host):
            passed = time.monotonic() - start
            if passed > GONE_SECONDS:
                raise ResourceError(
                    f"processes {pids} of the host {host} do not end", "end them by hand, and try again"
                )
            for pid in pids:
                if passed > WAIT_SECONDS or _pid_namespace(pid) != own:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for step in commands.unplug(self.network, host):
            _try(step)


def is_there(group: str) -> bool:
    """Whether this machine has a group of this name, whoever remembers it."""
    network = Network(group, "")
    links = {link["ifname"] for link in _json(["ip", "-json", "link", "show"])}
    return network.bridge in links or any(name.startswith(network.namespaces) for name in _namespaces())


def _free_subnet() -> str:
    routes = _json(["ip", "-json", "route", "show"])
    used = {str(route["dst"]).rpartition(".")[0] for route in routes}
    return next(prefix for prefix in SUBNETS if prefix not in used)


def _namespaces() -> list[str]:
    return [entry["name"] for entry in _json(["ip", "-json", "netns", "list"])]


def _pids(network: Network, host: str) -> list[int]:
    """Of all that runs in a host's namespace; none where there is no such namespace."""
    if not commands.namespace_file(network, host).exists():
        return []
    return [int(word) for word in _run(["ip", "netns", "pids", network.namespace(host)]).split()]


def _pid_namespace(pid: int) -> str:
    """Empty for a process that is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _json(command: Command) -> list[dict[str, Any]]:
    return list(json.loads(_run(command) or "[]"))


def _run(command: Command) -> str:
    """What a command says.

    Raises:
        ResourceError: when it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResourceError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _try(command: Command) -> None:
    """Runs a command that may have nothing to do."""
    subprocess.run(command, capture_output=True, check=False)
