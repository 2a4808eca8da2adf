"""A Ray head that asks for a token: how it is started and joined, and which hosts it counts as alive."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """A head, up or not."""

    address: str
    token: Path
    """File of the token."""
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

    def answers(self) -> bool:
        """Whether hosts can join."""
        try:
            socket.create_connection((self.address, self.port), timeout=ANSWER_TIMEOUT_S).close()
        except OSError:
            return False
        return True

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
