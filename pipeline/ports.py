"""Free ports of this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
EVERYWHERE = ""
"""All addresses of this machine at once."""


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free at an address."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Several different ports that are free at an address."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((host, 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]
