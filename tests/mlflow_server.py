"""A real `mlflow server` on loopback with its own database."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from pipeline.errors import TrackingError
from pipeline.ports import LOOPBACK, free_port
from pipeline.tracking.connection import check_reachable

START_TIMEOUT_S = 180.0
"""Timeout of a start; the first one creates eighty tables, slowly on a busy machine."""
REPOSITORY = Path(__file__).resolve().parents[1]


class Server:
    """A real `mlflow server` that can be killed and started again, with database, artifacts and log in a folder."""

    def __init__(self, folder: Path, host: str = LOOPBACK) -> None:
        self.port = free_port(host)
        self.folder = folder
        self.host = host
        self.uri = f"http://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> Sequence[str]:
        """Command line without the address that the server listens at."""
        stores = ("--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination")
        return (sys.executable, "-m", "mlflow", "server", "--workers", "1", *stores, str(self.folder / "files"))

    @property
    def server_environment(self) -> Mapping[str, str]:
        """Environment variables of the server besides those of this process."""
        return {}

    def start(self) -> None:
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self.server_environment,
        }
        command = [*self.command, "--host", self.host, "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            # Its own session, so that a kill ends its workers too.
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(TrackingError):
                return check_reachable(self.uri)
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
