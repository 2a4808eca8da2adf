"""Hosts made of network namespaces, each with an address, process ids, a host name, `/tmp/ray` and `/dev/shm` of its own. Needs root.

A group `lab` is a bridge `mg-lab`, on which this machine has the first address of a subnet. Each host is a network namespace
`mgmrn-lab-w1` with one end of a virtual cable as its `eth0`; the other end, `lab-w1`, is plugged into the bridge. There is no default
route: hosts reach each other and this machine only. The file system is the machine's, so every folder is a shared one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCK = Path("/run/mgmrn-hosts.lock")
"""Held while a free subnet is chosen and taken."""
SUBNETS = tuple(f"10.201.{number}" for number in range(256))
KILL_TIMEOUT_S = 20.0
REAP_S = 2.0
"""Seconds in which the processes that wait for a killed one may end by themselves."""
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "hostname")
OWN_SPACES = ("--pid", "--mount", "--uts", "--ipc")

_INIT = """\
set -e
hostname "$0"
mkdir -p "$1" /tmp/ray
mount --bind "$1" /tmp/ray
mount -t tmpfs -o size=2g shm /dev/shm
shift
test $$ = 1
while :; do
  "$@" || true
  kill -9 -1 || true
  sleep 1
done
"""
"""First process of a host. It starts the host's command again whenever it ends, as a cluster's supervisor does: Ray ends on a host that
was cut off for long, and on all workers when their head is replaced. `kill -9 -1` ends what the command left in the host's PID namespace."""


class HostError(AssertionError):
    """A host could not be made, changed or removed."""


class Namespaces:
    def __init__(self, group: str, prefix: str) -> None:
        self.group = group
        self.prefix = prefix
        self.bridge = f"mg-{group}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def open(cls, group: str) -> Namespaces:
        """Make the bridge of a group in a subnet that is not in use; an error says why there can be no hosts here."""
        if os.geteuid() != 0:
            raise HostError("not root")
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise HostError(f"no {' and no '.join(missing)} on this machine")
        _run("unshare", *OWN_SPACES, "--net", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "x", "/mnt")
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = {str(route["dst"]).rpartition(".")[0] for route in _json("route", "show")}
            made = cls(group, next(prefix for prefix in SUBNETS if prefix not in used))
            _run("ip", "link", "add", made.bridge, "type", "bridge")
            _run("ip", "address", "add", f"{made.gateway}/24", "dev", made.bridge)
            _run("ip", "link", "set", made.bridge, "up")
        return made

    @property
    def gateway(self) -> str:
        """This machine's address on the hosts' network."""
        return f"{self.prefix}.1"

    def namespace(self, host: str) -> str:
        return f"mgmrn-{self.group}-{host}"

    def cable(self, host: str) -> str:
        """Name of this machine's end of a host's cable."""
        return f"{self.group}-{host}"

    def start(
        self, host: str, address: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        """Start a host, which lives no longer than this process."""
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        namespace, cable = self.namespace(host), self.cable(host)
        # Derived from the IP address, so that other hosts' ARP caches hold for a host that takes this address later.
        hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        peer = ("peer", "name", "eth0", "address", hardware, "netns", namespace)
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _run("ip", "link", "add", cable, "type", "veth", *peer)
        _run("ip", "link", "set", cable, "master", self.bridge, "up")
        _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        with (folder / "log").open("ab") as log:
            self._started[host] = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{namespace}"),
                    *("unshare", *OWN_SPACES, "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", _INIT, f"{self.group}-{folder.name}", str(folder.resolve() / "ray"), *command),
                ],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal does not reach it.
                start_new_session=True,
            )

    def cut(self, host: str) -> None:
        """Take a host off the network; its processes go on."""
        _run("ip", "link", "set", self.cable(host), "down")

    def heal(self, host: str) -> None:
        _run("ip", "link", "set", self.cable(host), "up")

    def kill(self, host: str) -> None:
        """End a host as a loss of power does: the cable is dead before the processes are, so no connection is closed."""
        _try("ip", "link", "set", self.cable(host), "down")
        self._end_processes(host)
        if started := self._started.pop(host, None):
            started.wait(KILL_TIMEOUT_S)
        _try("ip", "link", "delete", self.cable(host))
        _try("ip", "netns", "delete", self.namespace(host))

    def has_ended(self, host: str) -> bool:
        """Whether a host was killed, or its first process ended by itself."""
        started = self._started.get(host)
        return started is None or started.poll() is not None

    def processes(self, host: str) -> list[int]:
        """Process ids, on this machine, of all that runs on a host; empty for a host that is lost."""
        if not Path("/run/netns", self.namespace(host)).exists():
            return []
        if started := self._started.get(host):
            started.poll()
        return [int(word) for word in _run("ip", "netns", "pids", self.namespace(host)).split()]

    def close(self) -> None:
        prefix = self.namespace("")
        for name in [entry["name"] for entry in _json("netns", "list")]:
            if name.startswith(prefix):
                self.kill(name.removeprefix(prefix))
        _try("ip", "link", "delete", self.bridge)

    def _end_processes(self, host: str) -> None:
        """End all that runs on a host.

        The first process of its PID namespace takes all others there along, and is reaped by its parent outside, which gets REAP_S for it.
        """
        start, own = time.monotonic(), _pid_namespace(os.getpid())
        while pids := self.processes(host):
            passed = time.monotonic() - start
            if passed > KILL_TIMEOUT_S:
                raise HostError(f"processes {pids} of the host {host} do not end")
            for pid in pids:
                if passed > REAP_S or _pid_namespace(pid) != own:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _pid_namespace(pid: int) -> str:
    """PID namespace of a process; empty for one that is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _json(*words: str) -> list[dict[str, Any]]:
    return list(json.loads(_run("ip", "-json", *words) or "[]"))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _try(*command: str) -> None:
    """Run a command that may have nothing to do."""
    subprocess.run(command, capture_output=True, check=False)
