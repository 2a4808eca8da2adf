"""A real `mlflow server` on loopback, on a database of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.ports import LOOPBACK, free_port

START_TIMEOUT_S = 180.0
"""A first start makes eighty tables, slowly on a busy machine."""
REPOSITORY = Path(__file__).resolve().parents[1]


class Server:
    """A real `mlflow server` that can be killed and started again; its database is `server.db` in its folder.

    Args:
        folder: of database, artifacts and log.
        host: address that it listens at.
    """

    def __init__(self, folder: Path, host: str = LOOPBACK) -> None:
        self.port = free_port(host)
        self.folder = folder
        self.host = host
        self.uri = f"http://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> Sequence[str]:
        """Command line, less where the server listens."""
        stores = ("--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination")
        return (sys.executable, "-m", "mlflow", "server", "--workers", "1", *stores, str(self.folder / "files"))

    @property
    def server_environment(self) -> Mapping[str, str]:
        """What the server gets in its environment besides this process's variables."""
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
            # A session of its own, so that killing it takes its workers along.
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """What the server has said."""
        return (self.folder / "server.log").read_text(errors="replace")

    def _answers(self) -> bool:
        # No proxy: the address is this machine's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
