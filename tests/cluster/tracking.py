"""A tracking server for a module of tests, in a folder that PostgreSQL's own user may enter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.tracking.postgres import binary
from cluster.tracking.server import TrackingServer, tracking_server
from mgmrn.errors import ResourceError


@contextmanager
def server_for_tests() -> Iterator[TrackingServer]:
    """On free ports of loopback; skips where PostgreSQL is not installed."""
    with folder_for_server() as folder, tracking_server(folder) as server:
        yield server


@contextmanager
def folder_for_server() -> Iterator[Path]:
    """Not pytest's folder, which root keeps to itself; skips where PostgreSQL is not installed."""
    try:
        binary("initdb"), binary("postgres")
    except ResourceError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="tracking") as name:
        Path(name).chmod(0o755)
        yield Path(name)
