"""Free ports of this machine."""

import socket

LOOPBACK = "127.0.0.1"
EVERYWHERE = ""


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free at an address."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
