"""Hosts without Ray: a small server is all that runs on them, so that it can be told whether it is reached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.local.commands import Network
from cluster.local.machines import Host, Machines
from cluster.local.namespaces import Namespaces, is_there, refusal
from cluster.local.processes import Processes
from mgmrn.errors import ResourceError
from pipeline.ports import EVERYWHERE, free_port
from tests.ray.command import wait_until

pytestmark = pytest.mark.cluster

GROUP = f"m{os.getpid() % 10**5}"
SERVE = (
    "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2])))\nwhile True: s.accept()[0].close()"
)


class Hosts:
    """Two hosts of a group that is open."""

    def __init__(self, machines: Machines, folder: Path, port: int) -> None:
        self.machines = machines
        self.folder = folder
        self.port = port
        self.first, self.second = (self.start(number) for number in (1, 2))
        self.wait_for(self.first, self.second)

    def start(self, number: int) -> Host:
        address = f"{self.machines.addresses}.{2 + number}"
        host = Host(f"w{number}", f"{GROUP}-w{number}", f"w{number}", address, cpus=1)
        command = [sys.executable, "-c", SERVE, address, str(self.port)]
        process = self.machines.start(host, command, dict(os.environ), self.folder / host.folder)
        return replace(host, process=process)

    def wait_for(self, *hosts: Host) -> None:
        wait_until(lambda: all(map(self.reached, hosts)), "all answer", 30)

    def reached(self, host: Host, source: Host | None = None) -> bool:
        """Whether a host's server is reached, from this machine or from another host."""
        if source is None:
            try:
                socket.create_connection((host.address, self.port), timeout=0.5).close()
            except OSError:
                return False
            return True
        knock = f"import socket; socket.create_connection(({host.address!r}, {self.port}), timeout=0.5)"
        return not subprocess.run(
            self.machines.inside(source, [sys.executable, "-c", knock]), capture_output=True
        ).returncode

    def said(self, host: Host, *command: str) -> str:
        inside = self.machines.inside(host, command)
        return subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def two_hosts(group: str, folder: Path) -> Iterator[Hosts]:
    """Out of namespaces; gone afterwards."""
    with Namespaces.free(group) as machines:
        machines.open()
    try:
        yield Hosts(machines, folder, port=7000)
    finally:
        machines.close()
    assert not is_there(group)


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Hosts]:
    if reason := refusal():
        pytest.skip(f"no network namespaces here: {reason}")
    with two_hosts(GROUP, tmp_path) as hosts:
        yield hosts


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Hosts]:
    machines = Processes.free(GROUP)
    machines.open()
    try:
        yield Hosts(machines, tmp_path, free_port(EVERYWHERE))
    finally:
        machines.close()


def test_a_host_has_its_own_name_processes_folders_and_network(namespaces: Hosts) -> None:
    first, second = namespaces.first, namespaces.second
    assert namespaces.said(first, "hostname") == first.hostname
    assert first.process not in map(int, namespaces.said(first, "ps", "-eo", "pid=").split())
    namespaces.said(first, "touch", "/tmp/ray/mine", "/dev/shm/mine")
    for folder in ("/tmp/ray", "/dev/shm"):
        assert namespaces.said(second, "ls", folder) == ""
        assert not (Path(folder) / "mine").exists()
    assert namespaces.said(first, "ip", "route", "show", "default") == ""
    assert namespaces.reached(second, source=first)


def test_a_host_is_cut_off_and_healed(namespaces: Hosts) -> None:
    first, second = namespaces.first, namespaces.second
    namespaces.machines.cut(first)
    assert namespaces.machines.state(first) == "cut off"
    assert not namespaces.reached(first) and not namespaces.reached(second, source=first)
    assert namespaces.reached(second)
    namespaces.machines.heal(first)
    namespaces.wait_for(first)
    assert namespaces.machines.state(first) == "up"


def test_a_killed_host_says_nothing_and_another_takes_its_address(namespaces: Hosts) -> None:
    with socket.create_connection((namespaces.first.address, namespaces.port), timeout=5):
        pass
    before = processes_of(namespaces.first)
    namespaces.machines.kill(namespaces.first)
    assert namespaces.machines.state(namespaces.first) == "lost"
    assert not any(map(runs, before))
    assert not namespaces.reached(namespaces.first)
    assert namespaces.reached(namespaces.second), "the other one stays"
    another = namespaces.start(1)
    namespaces.wait_for(another)
    assert namespaces.reached(another, source=namespaces.second)


def test_two_groups_stand_side_by_side(namespaces: Hosts, tmp_path: Path) -> None:
    with two_hosts(f"{GROUP}x", tmp_path / "other") as other:
        assert other.machines.addresses != namespaces.machines.addresses
        assert not namespaces.reached(other.first, source=namespaces.first), "they do not see each other"
    assert namespaces.reached(namespaces.first), "the end of one group is not that of another"


def test_what_nobody_remembers_is_removed(namespaces: Hosts) -> None:
    Namespaces(Network(GROUP, "")).close()
    assert not is_there(GROUP)


def test_hosts_of_plain_processes_are_lost_one_by_one(processes: Hosts) -> None:
    before = processes_of(processes.first)
    assert processes.machines.state(processes.first) == "up"
    with pytest.raises(ResourceError, match="as root"):
        processes.machines.cut(processes.first)
    processes.machines.kill(processes.first)
    assert processes.machines.state(processes.first) == "lost"
    assert not any(map(runs, before))
    assert processes.reached(processes.second) and not processes.reached(processes.first)


def test_what_ends_in_a_namespace_is_started_again_and_takes_along_what_it_left(namespaces: Hosts) -> None:
    host = namespaces.first
    assert isinstance(namespaces.machines, Namespaces)
    with subprocess.Popen(namespaces.machines.inside(host, ["sleep", "60"])) as left:
        wait_until(lambda: "sleep 60" in namespaces.said(host, "ps", "-eo", "args="), "it runs", 30)
        # This command itself may be among what is taken along.
        subprocess.run(namespaces.machines.inside(host, ["pkill", "-KILL", "-f", "socket.create_server"]))
        assert left.wait(30) != 0, "killed"
    namespaces.wait_for(host)
    assert namespaces.machines.state(host) == "up"
    assert namespaces.reached(namespaces.second), "the other host has lost nothing"


def test_what_ends_on_a_host_is_started_again(processes: Hosts) -> None:
    (served,) = psutil.Process(processes.first.process).children()
    served.kill()
    processes.wait_for(processes.first)
    assert processes.machines.state(processes.first) == "up"


def processes_of(host: Host) -> list[int]:
    top = psutil.Process(host.process)
    return [top.pid, *(child.pid for child in top.children(recursive=True))]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
