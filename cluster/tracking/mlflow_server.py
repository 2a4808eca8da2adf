"""`mlflow server` with its basic authentication, which also serves the artifacts, so that clients need no file system."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from cluster.tracking.credentials import ADMIN, Credentials
from cluster.tracking.process import GRACE_SECONDS, ServerProcess, check_free
from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError
from pipeline.databases import with_installed_driver

START_SECONDS = 180.0
"""A first start makes some eighty tables; a busy machine takes its time."""
WORKERS = 1
"""Each takes a second to import MLflow and 300 MB; one answers its requests in threads."""
MARK = "MGMRN_TRACKING_FOLDER"
"""In the environment of the server's processes: tells those of this folder from all others."""


@dataclass(frozen=True)
class Bind:
    """Where the server listens."""

    host: str
    port: int
    allowed_hosts: str | None = None
    """Names that a browser may call it by, with commas between; None: loopback and private addresses."""

    @property
    def uri(self) -> str:
        """As a driver is told it."""
        return f"http://{self.host}:{self.port}"


class MlflowServer:
    """One MLflow server.

    Args:
        folder: holds `artifacts/`, the auth settings and the log.
        bind: where it listens.
        secrets: the admin's password and the key for forms.
        store_uri: database of runs.
        auth_uri: database of users.
        database_environment: what the two databases need in the environment.
    """

    def __init__(
        self,
        folder: Path,
        bind: Bind,
        secrets: Credentials,
        store_uri: str,
        auth_uri: str,
        database_environment: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._bind = bind
        self._secrets = secrets
        self._store_uri = store_uri
        self._auth_uri = auth_uri
        self._database_environment = database_environment
        self._process: ServerProcess | None = None

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended by itself."""
        return self._process is not None and self._process.alive

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            ResourceError: when a part of MLflow is missing, or the server does not come up.
            UserError: when the address cannot be listened at.
        """
        if importlib.util.find_spec("flask_wtf") is None:
            raise ResourceError("MLflow's authentication needs flask-wtf", "install it with pip install 'mlflow[auth]'")
        self._end_orphans()
        check_free(self._bind.host, self._bind.port, "--host, --port")
        options = {
            "--host": self._bind.host,
            "--port": str(self._bind.port),
            "--workers": str(WORKERS),
            "--app-name": "basic-auth",
            "--artifacts-destination": str(self._folder / "artifacts"),
        }
        if self._bind.allowed_hosts is not None:
            options["--allowed-hosts"] = self._bind.allowed_hosts
        command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
        self._process = ServerProcess("MLflow", command, self._environment(), self._folder / "mlflow.log")
        self._process.wait_until(self._answers, START_SECONDS)

    def stop(self) -> None:
        """Ends the server; requests that are on are answered."""
        if self._process is not None:
            self._process.stop(signal.SIGTERM)
            self._process = None

    def kill(self) -> None:
        """Ends the server in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _environment(self) -> dict[str, str]:
        """Secrets travel here: a command line can be read by every user of the machine."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_", "PG"))}
        return inherited | {
            **self._database_environment,
            MARK: str(self._folder),
            "MLFLOW_BACKEND_STORE_URI": with_installed_driver(self._store_uri),
            "MLFLOW_AUTH_CONFIG_PATH": str(self._auth_settings()),
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._secrets.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._secrets.flask_key,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def _auth_settings(self) -> Path:
        """Everybody with an account may read; a run is changed by whoever made it, or the admin.

        A password is hashed slowly on purpose, so that a minute of remembering it makes every request several times faster.
        """
        path = self._folder / "auth.ini"
        with replacing(path) as file:
            file.write(
                f"[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\ndatabase_uri = {with_installed_driver(self._auth_uri)}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n".encode()
            )
        return path

    def _end_orphans(self) -> None:
        """Ends what outlived the process that had started it."""
        orphans = [process for process in psutil.process_iter() if _is_of(process, self._folder)]
        for process in orphans:
            process.terminate()
        for process in psutil.wait_procs(orphans, GRACE_SECONDS)[1]:
            process.kill()

    def _answers(self) -> bool:
        # No proxy: the address is this machine's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self._bind.uri}/health", timeout=2):
                return True
        except OSError:
            return False


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(process.environ().get(MARK) == str(folder))
    except (psutil.Error, OSError):
        return False
