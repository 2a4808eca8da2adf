"""The hosts of the other tests, with a small server on each instead of Ray: isolated, cut off, killed, replaced, removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.namespaces import Namespaces, refusal
from tests.ray.command import wait_until

pytestmark = pytest.mark.cluster

PORT = 7000
SERVE = f"import socket, sys; s = socket.create_server((sys.argv[1], {PORT}))\nwhile True: s.accept()[0].close()"
KNOCK = f"import socket, sys; socket.create_connection((sys.argv[1], {PORT}), timeout=0.5)"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Namespaces]:
    """Two hosts, `w1` and `w2`."""
    if reason := refusal():
        pytest.skip(f"no network namespaces here: {reason}")
    made = Namespaces.open(f"m{os.getpid() % 10**5}")
    try:
        for number in (1, 2):
            start(made, number, tmp_path)
        yield made
    finally:
        made.close()
    assert not subprocess.run(["ip", "link", "show", made.bridge], capture_output=True).stdout
    assert made.namespace("") not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout


def address(hosts: Namespaces, number: int) -> str:
    return f"{hosts.prefix}.{2 + number}"


def start(hosts: Namespaces, number: int, folder: Path) -> None:
    there = address(hosts, number)
    hosts.start(f"w{number}", there, [sys.executable, "-c", SERVE, there], os.environ, folder / f"w{number}")
    wait_until(lambda: reached(hosts, number), "it serves", 30)


def reached(hosts: Namespaces, number: int, source: int | None = None) -> bool:
    """Whether a host's server is reached, from this machine or from another host."""
    if source is not None:
        knock = [sys.executable, "-c", KNOCK, address(hosts, number)]
        return subprocess.run(hosts.inside(f"w{source}", knock), capture_output=True).returncode == 0
    try:
        socket.create_connection((address(hosts, number), PORT), timeout=0.5).close()
    except OSError:
        return False
    return True


def said(hosts: Namespaces, host: str, *command: str) -> str:
    return subprocess.run(hosts.inside(host, command), capture_output=True, text=True, check=True).stdout.strip()


def test_a_host_has_a_name_processes_folders_and_a_network_of_its_own(hosts: Namespaces) -> None:
    assert said(hosts, "w1", "hostname") == f"{hosts.group}-w1"
    inside = said(hosts, "w1", "ps", "-eo", "pid=").split()
    assert len(inside) < 10, "it sees its own processes only"
    said(hosts, "w1", "touch", "/tmp/ray/mine", "/dev/shm/mine")
    for folder in ("/tmp/ray", "/dev/shm"):
        assert said(hosts, "w2", "ls", folder) == ""
        assert not (Path(folder) / "mine").exists()
    assert said(hosts, "w1", "ip", "route", "show", "default") == ""
    assert reached(hosts, 1, source=2)


def test_a_host_is_cut_off_and_healed(hosts: Namespaces) -> None:
    hosts.cut("w1")
    assert hosts.processes("w1") and reached(hosts, 2)
    assert not reached(hosts, 1) and not reached(hosts, 2, source=1)
    hosts.heal("w1")
    wait_until(lambda: reached(hosts, 1), "it is back", 30)


def test_a_host_is_killed_and_another_takes_its_address(hosts: Namespaces, tmp_path: Path) -> None:
    before = hosts.processes("w1")
    hosts.kill("w1")
    assert not any(Path("/proc", str(pid)).exists() for pid in before)
    assert not hosts.processes("w1") and not reached(hosts, 1) and reached(hosts, 2)
    start(hosts, 1, tmp_path / "another")
    assert reached(hosts, 1, source=2)


def test_a_command_that_ends_is_started_again_without_what_it_left(hosts: Namespaces) -> None:
    with subprocess.Popen(hosts.inside("w1", ["sleep", "60"])) as left:
        wait_until(lambda: "sleep 60" in said(hosts, "w1", "ps", "-eo", "args="), "it runs", 30)
        # This command itself may be among what is ended.
        subprocess.run(hosts.inside("w1", ["pkill", "-KILL", "-f", "socket.create_server"]))
        assert left.wait(30) != 0, "killed"
    wait_until(lambda: reached(hosts, 1), "it serves again", 30)


def test_hosts_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    """A killed test run leaves no processes behind, at most an empty bridge."""
    if reason := refusal():
        pytest.skip(f"no network namespaces here: {reason}")
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.hosts.namespaces import Namespaces
hosts = Namespaces.open("k{os.getpid() % 10**5}")
hosts.start("w1", hosts.prefix + ".3", ["sleep", "600"], os.environ, Path({str(tmp_path)!r}))
while not hosts.processes("w1"):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    left = Namespaces(f"k{os.getpid() % 10**5}", "")
    try:
        wait_until(lambda: not left.processes("w1"), "all has ended", 20)
    finally:
        left.close()
