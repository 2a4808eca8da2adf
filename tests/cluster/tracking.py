"""`cluster/mlflow/serve.sh` on a PostgreSQL server of the tests."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from pipeline.ports import LOOPBACK, free_port
from pipeline.tracking.connection import PASSWORD_VARIABLE
from tests.mlflow_server import REPOSITORY, Server

SERVE = REPOSITORY / "cluster" / "mlflow" / "serve.sh"
RUNS = "mlflow"
DATABASES = (RUNS, "mlflow_auth", "studies")
USER = "mlflow"


class Postgres:
    """A PostgreSQL server with a password on loopback; for root it runs as the user `postgres`, who may enter the folder."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.password = secrets.token_hex(16)
        self.passfile = folder / "pgpass"
        self.port = free_port()
        self._data = folder / "data"
        self._binaries = binaries
        self.passfile.touch(mode=0o600)
        self.passfile.write_text(f"*:*:*:{USER}:{self.password}\n")
        self._data.mkdir(mode=0o700)
        given = folder / "password"
        given.touch(mode=0o600)
        given.write_text(self.password)
        if os.geteuid() == 0:
            shutil.chown(self._data, "postgres")
            shutil.chown(given, "postgres")
        options = (f"--username={USER}", f"--pwfile={given}", "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8")
        self._run("initdb", *options, "--no-sync")
        given.unlink()

    def _run(self, program: str, *options: str) -> None:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        command = [*as_user, str(self._binaries / program), "-D", str(self._data), *options]
        subprocess.run(command, check=True, capture_output=True)

    def uri(self, database: str) -> str:
        """Address of a database, without the password."""
        return f"postgresql://{USER}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = f"-p {self.port} -c listen_addresses={LOOPBACK} -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--log", str(self._data / "log"), "--options", settings)

    def stop(self) -> None:
        """End the server as its administrator would: open transactions are rolled back."""
        self._run("pg_ctl", "stop", "--wait", "--mode", "fast")


class TrackingServer(Server):
    """A tracking server with logins on a running database server with `DATABASES`."""

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
    """A running server on a free port, with a login that an earlier start has left or a new one; skips without PostgreSQL."""
    # Debian leaves PostgreSQL's programs out of PATH.
    initdb = shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
    if initdb is None:
        pytest.skip("PostgreSQL's server is not installed: apt install postgresql")
    # Not pytest's folder, which root keeps to itself.
    with tempfile.TemporaryDirectory("postgres") as place, tempfile.TemporaryDirectory("tracking") as name:
        Path(place).chmod(0o755)
        database = Postgres(Path(place), Path(initdb).resolve().parent)
        server = TrackingServer(Path(name), database, host)
        if login:
            text = "".join(f"export {variable}={value}\n" for variable, value in login.items())
            (server.folder / "credentials.env").write_text(text)
        database.start()
        try:
            connection = psycopg2.connect(database.uri("postgres"), password=database.password)
            connection.autocommit = True
            for one in DATABASES:
                connection.cursor().execute(f"CREATE DATABASE {one}")
            connection.close()
            server.start()
            yield server
        finally:
            server.kill()
            database.stop()
