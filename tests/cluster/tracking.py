"""`cluster/mlflow/serve.sh` on a PostgreSQL of the tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.ports import LOOPBACK
from pipeline.tracking.connection import PASSWORD_VARIABLE
from tests.mlflow_server import REPOSITORY, Server
from tests.postgres import Postgres, postgres_server

SERVE = REPOSITORY / "cluster" / "mlflow" / "serve.sh"
RUNS = "mlflow"


class TrackingServer(Server):
    """A server with logins.

    Args:
        folder: of login, key, artifacts and log.
        database: running, with the databases `mlflow` and `mlflow_auth`.
        host: address that it listens at.
    """

    def __init__(self, folder: Path, database: Postgres, host: str) -> None:
        super().__init__(folder, host)
        self.database = database

    @property
    def command(self) -> Sequence[str]:
        return (str(SERVE), self.database.uri(RUNS))

    @property
    def server_environment(self) -> Mapping[str, str]:
        return {"MGMRN_TRACKING": str(self.folder), "MGMRN_VENV": sys.prefix} | self.database_environment

    @property
    def database_environment(self) -> dict[str, str]:
        """Variable by which libpq finds the database's password."""
        return {"PGPASSFILE": str(self.database.passfile)}

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a driver, with the login."""
        lines = (self.folder / "credentials.env").read_text().splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    @property
    def password(self) -> str:
        return self.environment[PASSWORD_VARIABLE]


@contextmanager
def tracking_server(host: str = LOOPBACK, login: Mapping[str, str] | None = None) -> Iterator[TrackingServer]:
    """A running server on a free port; skips where PostgreSQL is not installed.

    Args:
        host: address that it listens at.
        login: variables of a driver, as an earlier start has left them; None: the server makes a password.
    """
    with postgres_server(RUNS, "mlflow_auth", "studies") as database, tempfile.TemporaryDirectory("tracking") as name:
        server = TrackingServer(Path(name), database, host)
        if login:
            text = "".join(f"export {variable}={value}\n" for variable, value in login.items())
            (server.folder / "credentials.env").write_text(text)
        try:
            server.start()
            yield server
        finally:
            server.kill()
