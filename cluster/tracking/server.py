"""The tracking server as a whole, from the first start to the last stop.

    with tracking_server(folder) as server:
        ...  # server.uri, server.environment

Everything is kept in one folder: the database, the artifacts, three files of secrets (mode 600), the logs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.tracking.credentials import Credentials, credentials
from cluster.tracking.mlflow_server import Bind, MlflowServer
from cluster.tracking.postgres import Postgres
from mgmrn.errors import UserError
from pipeline.ports import LOOPBACK, free_port

RUNS, USERS, STUDIES = "mlflow", "mlflow_auth", "studies"
"""Databases: MLflow's two, and one for the studies of searches (`--study-storage`)."""


@dataclass(frozen=True)
class TrackingServer:
    """A running server."""

    uri: str
    credentials: Credentials
    database: Postgres
    mlflow: MlflowServer

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment to be let in."""
        return self.credentials.environment

    @property
    def study_storage(self) -> str:
        """Address of the database for studies; its password is found by `PGPASSFILE` (`database.environment`)."""
        return self.database.uri(STUDIES)


@contextmanager
def tracking_server(
    folder: Path,
    host: str = LOOPBACK,
    port: int | None = None,
    database_port: int | None = None,
    allowed_hosts: str | None = None,
) -> Iterator[TrackingServer]:
    """A tracking server for as long as the context lasts.

    Args:
        folder: where everything is kept; made at the first start. What stands there is gone on with.
        host: address of this machine that MLflow listens at. PostgreSQL stays on loopback.
        port: of MLflow; None: a free one.
        database_port: of PostgreSQL; None: a free one.
        allowed_hosts: names that browsers may call the server by; None: loopback and private addresses.

    Raises:
        ResourceError: when a program is missing or a server does not come up.
        UserError: when another server runs from the folder, or an address is taken.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(folder))
        secrets = credentials(folder)
        database = Postgres(folder, database_port or free_port(), secrets)
        stack.callback(database.stop)
        database.start()
        for name in (RUNS, USERS, STUDIES):
            database.make_database(name)
        bind = Bind(host, port or free_port(host), allowed_hosts)
        mlflow = MlflowServer(folder, bind, secrets, database.uri(RUNS), database.uri(USERS), database.environment)
        stack.callback(mlflow.stop)
        mlflow.start()
        yield TrackingServer(bind.uri, secrets, database, mlflow)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second server away from the folder. The lock ends with this process, however that ends."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "a tracking server already runs from this folder",
                str(folder),
                "stop it first, or name another --folder",
            ) from error
        yield
