"""A PostgreSQL server on loopback, of a folder of its own. Root starts it as the user `postgres`, since PostgreSQL does not run as root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest

from pipeline.ports import LOOPBACK, free_port

START_TIMEOUT_S = 60.0
USER = "mlflow"


class Postgres:
    """One server with a password.

    Args:
        folder: an empty one, which the user that the server runs as may enter.
        binaries: folder of PostgreSQL's programs.
    """

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.password = secrets.token_hex(16)
        self.passfile = folder / "pgpass"
        self.port = free_port()
        self._data = folder / "data"
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
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
        subprocess.run(self._command("initdb", *options, "--no-sync"), check=True, capture_output=True)
        given.unlink()

    def _command(self, program: str, *options: str) -> list[str]:
        as_user = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        # The server ends with the process that started it.
        own = ["setpriv", "--pdeathsig=INT", *as_user, str(self._binaries / program)]
        return [*own, "-D", str(self._data), *options]

    def uri(self, database: str) -> str:
        """Address of a database, without the password."""
        return f"postgresql://{USER}@{LOOPBACK}:{self.port}/{database}"

    def start(self, *databases: str) -> None:
        """Start the server, wait until it answers, and create some databases."""
        settings = (f"listen_addresses={LOOPBACK}", "unix_socket_directories=", "fsync=off")
        options = [word for setting in settings for word in ("-c", setting)]
        self._process = subprocess.Popen(
            self._command("postgres", "-p", str(self.port), *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(psycopg2.OperationalError), closing(self._connect()) as connection:
                connection.autocommit = True
                for name in databases:
                    connection.cursor().execute(f"CREATE DATABASE {name}")
                return
            assert self._process.poll() is None and time.monotonic() < deadline, "PostgreSQL does not come up"
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server as its administrator would: open transactions are rolled back."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(self.uri("postgres"), password=self.password, connect_timeout=5)


@contextmanager
def postgres_server(*databases: str) -> Iterator[Postgres]:
    """A running server with some databases; skips where PostgreSQL is not installed."""
    if (binaries := _binaries()) is None:
        pytest.skip("PostgreSQL's server is not installed: apt install postgresql")
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # Not pytest's folder, which root keeps to itself.
    with tempfile.TemporaryDirectory(prefix="postgres") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(folder, binaries)
        server.start(*databases)
        try:
            yield server
        finally:
            server.stop()


def _binaries() -> Path | None:
    """Folder of `initdb` and `postgres`: that of the PATH, or Debian's of the latest version."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parents[1].name))
    return versions[-1].parent if versions else None
