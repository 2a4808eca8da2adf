"""How Ray is started on a host, and what its head says of the hosts."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.local.machines import HEAD, Host

OBJECT_STORE_BYTES = 200 * 2**20
"""Nothing large travels through Ray here; the least that it takes is 75 MiB."""
ANSWER_SECONDS = 5.0

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Other work of the machine is not a reason to kill this.
    "RAY_memory_monitor_refresh_ms": "0",
    # A lost host is noticed after 3 to 6 seconds instead of 14.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Ports:
    """Where the head is found, at its address."""

    ray: int
    dashboard: int


def environment(host: Host, token: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What Ray's processes of a host get: the caller's environment without what it says of other clusters.

    Drivers run on the head, so the head alone may know how to get into the tracking server.

    Args:
        host: the one that is started.
        token: file with the group's token.
        inherited: the environment of the caller.
    """
    foreign = ("RAY_",) if host.name == HEAD else ("RAY_", "MLFLOW_")
    kept = {name: value for name, value in inherited.items() if not name.startswith(foreign)}
    binaries = str(Path(sys.executable).parent)
    # Without the virtual environment on the path, jobs find no Ray.
    path = os.pathsep.join(dict.fromkeys((binaries, *kept.get("PATH", os.defpath).split(os.pathsep))))
    return {**kept, **_SETTINGS, "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}


def client_environment(head: Host, ports: Ports, token: Path) -> dict[str, str]:
    """What a command on this machine needs to reach the head: drivers, `ray job submit`, `pipeline submit`."""
    return {
        "RAY_ADDRESS": f"{head.address}:{ports.ray}",
        "RAY_API_SERVER_ADDRESS": dashboard(head, ports),
        "RAY_AUTH_MODE": _SETTINGS["RAY_AUTH_MODE"],
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


def start_command(host: Host, head: Host, ports: Ports, options: Mapping[str, str]) -> list[str]:
    """`ray start` for a host, which ends only when Ray does.

    Args:
        host: the one that is started.
        head: the group's head.
        ports: of the head.
        options: more of `ray start`, by name.
    """
    own = {
        "node-ip-address": host.address,
        "num-cpus": str(host.cpus),
        "num-gpus": "0",
        "object-store-memory": str(OBJECT_STORE_BYTES),
        # It carries workers' words to drivers, which nobody asks for here.
        "include-log-monitor": "false",
    }
    if host.name == HEAD:
        role = {"port": str(ports.ray), "dashboard-host": host.address, "dashboard-port": str(ports.dashboard)}
    else:
        role = {"address": f"{head.address}:{ports.ray}"}
    words = [f"--{name}={value}" for name, value in (own | role | dict(options)).items()]
    ray = str(Path(sys.executable).parent / "ray")
    return [ray, "start", *(["--head"] if host.name == HEAD else []), "--block", "--disable-usage-stats", *words]


def dashboard(head: Host, ports: Ports) -> str:
    """Address of Ray's dashboard, which also takes jobs."""
    return f"http://{head.address}:{ports.dashboard}"


def answers(head: Host, ports: Ports) -> bool:
    """Whether hosts can join already."""
    try:
        socket.create_connection((head.address, ports.ray), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def alive(head: Host, ports: Ports, token: Path) -> frozenset[str]:
    """Addresses of the hosts that Ray takes for alive; none while the head does not answer."""
    headers = {"Authorization": f"Bearer {token.read_text()}"}
    request = urllib.request.Request(f"{dashboard(head, ports)}/api/v0/nodes", headers=headers)
    # No proxy: these hosts are on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()
    return frozenset(node["node_ip"] for node in nodes if node["state"] == "ALIVE")
