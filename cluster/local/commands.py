"""Command lines that make, cut and remove hosts out of network namespaces. Nothing is run here.

A group `lab` is a bridge `mg-lab`, on which this machine has the first address; each host is a network namespace `mgmrn-lab-w1` with
one end of a cable as its `eth0`; the other end, `lab-w1`, is plugged into the bridge. There is no default route: hosts see each other
and this machine, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Command = list[str]

INTERFACE = "eth0"
RAY_FOLDER = "/tmp/ray"

_INIT = """\
set -e
hostname "$0"
mkdir -p "$2"
mount --bind "$1" "$2"
mount -t tmpfs -o size=2g shm /dev/shm
shift 2
test $$ = 1
while :; do
  "$@" || true
  kill -9 -1 || true
  sleep 1
done
"""
"""The first process of a host: its name, its own folders, and then its command, again and again, as a cluster's own supervisor would do it.

A host that was cut off for long is dead to its cluster, and so are hosts whose head was replaced: Ray ends there, and joins anew. What it
leaves on the host is ended before: -1 means all processes that this one sees, which are the host's alone, as it is their first.
"""


@dataclass(frozen=True)
class Network:
    """A group's network: its name, and the first three numbers of its addresses."""

    group: str
    prefix: str

    @property
    def bridge(self) -> str:
        """Name of the bridge; interfaces have at most 15 characters."""
        return f"mg-{self.group}"

    @property
    def namespaces(self) -> str:
        """How the names of the group's namespaces begin."""
        return f"mgmrn-{self.group}-"

    def namespace(self, host: str) -> str:
        """Name of a host's namespace."""
        return f"{self.namespaces}{host}"

    def cable(self, host: str) -> str:
        """Name of this machine's end of a host's cable."""
        return f"{self.group}-{host}"


def make_bridge(network: Network) -> list[Command]:
    """The bridge, with this machine on it."""
    return [
        ["ip", "link", "add", network.bridge, "type", "bridge"],
        ["ip", "address", "add", f"{network.prefix}.1/24", "dev", network.bridge],
        ["ip", "link", "set", network.bridge, "up"],
    ]


def remove_bridge(network: Network) -> Command:
    """The bridge alone; cables that are still in it stay."""
    return ["ip", "link", "delete", network.bridge]


def plug_in(network: Network, host: str, address: str) -> list[Command]:
    """A namespace and its cable into the bridge.

    The hardware address follows from the address, so that nobody remembers that of a host which this one replaces.
    """
    namespace, cable = network.namespace(host), network.cable(host)
    hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
    peer = ["peer", "name", INTERFACE, "address", hardware, "netns", namespace]
    return [
        ["ip", "netns", "add", namespace],
        ["ip", "-n", namespace, "link", "set", "lo", "up"],
        ["ip", "link", "add", cable, "type", "veth", *peer],
        ["ip", "link", "set", cable, "master", network.bridge, "up"],
        ["ip", "-n", namespace, "address", "add", f"{address}/24", "dev", INTERFACE],
        ["ip", "-n", namespace, "link", "set", INTERFACE, "up"],
    ]


def start(network: Network, host: str, hostname: str, folder: Path, command: Sequence[str]) -> Command:
    """Starts a host's first process; that which is started here only waits for it, and takes it along when it is killed."""
    spaces = ["--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    return [
        *["nsenter", f"--net={namespace_file(network, host)}", "unshare", *spaces],
        *["sh", "-c", _INIT, hostname, str(folder), RAY_FOLDER, *command],
    ]


def enter(network: Network, host: str, first_process: int, command: Sequence[str]) -> Command:
    """Runs a command on a host, whose first process has this id on the machine."""
    spaces = [f"--net={namespace_file(network, host)}", f"--target={first_process}"]
    return ["nsenter", *spaces, "--pid", "--mount", "--uts", "--ipc", "--", *command]


def namespace_file(network: Network, host: str) -> Path:
    """Where `ip` keeps a namespace."""
    return Path("/run/netns") / network.namespace(host)


def set_cable(network: Network, host: str, way: str) -> Command:
    """Pulls a cable (`down`), or puts it back (`up`)."""
    return ["ip", "link", "set", network.cable(host), way]


def unplug(network: Network, host: str) -> list[Command]:
    """Removes cable and namespace of a host in which nothing runs any more."""
    return [
        ["ip", "link", "delete", network.cable(host)],
        ["ip", "netns", "delete", network.namespace(host)],
    ]
