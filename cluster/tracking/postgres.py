"""PostgreSQL for a tracking server and for studies: a data folder of its own, on loopback, with a password.

PostgreSQL refuses to run as root. Root starts it as the user `postgres` or `nobody`; anybody else as himself.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2  # type: ignore[import-untyped]
from psycopg2 import sql

from cluster.tracking.credentials import DATABASE_USER, Credentials
from cluster.tracking.process import GRACE_SECONDS, ServerProcess, check_free
from mgmrn.errors import ResourceError, UserError
from pipeline.ports import LOOPBACK

START_SECONDS = 60.0
ROOTS_STAND_INS = ("postgres", "nobody")
DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps the binaries of each version here and links none of the servers' into the path."""


def binary(name: str) -> Path:
    """A program of PostgreSQL, from the path or from Debian's folders, the latest version first.

    Raises:
        ResourceError: when PostgreSQL is not installed.
    """
    if found := shutil.which(name):
        return Path(found).resolve()
    versions = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: _version(path.parents[1].name), reverse=True)
    if not versions:
        raise ResourceError(
            f"PostgreSQL's {name} is not installed", "install it, on Debian with apt install postgresql"
        )
    return versions[0]


class Postgres:
    """One PostgreSQL server.

    Args:
        folder: holds `postgresql/` (made at the first start) and the log.
        port: on loopback.
        secrets: the database's password.
    """

    def __init__(self, folder: Path, port: int, secrets: Credentials) -> None:
        self._data = folder / "postgresql"
        self._log = folder / "postgresql.log"
        self._port = port
        self._secrets = secrets
        self._process: ServerProcess | None = None

    def uri(self, database: str) -> str:
        """Address of a database, without the password: libpq finds that by `PGPASSFILE`."""
        return f"postgresql://{DATABASE_USER}@{LOOPBACK}:{self._port}/{database}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of `uri` needs in its environment."""
        return {"PGPASSFILE": str(self._secrets.database_file)}

    def start(self) -> None:
        """Makes the data folder where there is none, and waits until the server answers.

        Raises:
            ResourceError: when PostgreSQL is missing or does not come up.
            UserError: when the port is taken, or the user that it runs as cannot enter the folder.
        """
        program = binary("postgres")
        self._end_orphan()
        check_free(LOOPBACK, self._port, "--database-port")
        if not (self._data / "PG_VERSION").exists():
            self._make_data()
        command = [str(program), "-D", str(self._data), "-p", str(self._port)]
        # No socket file: its path may be too long, and nobody needs it.
        settings = {"listen_addresses": LOOPBACK, "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = ServerProcess("PostgreSQL", command + options, _environment(), self._log, self._user)
        self._process.wait_until(self._answers, START_SECONDS)

    def stop(self) -> None:
        """Ends the server in its fast way: transactions are rolled back, everything committed is on disk."""
        if self._process is not None:
            self._process.stop(signal.SIGINT)
            self._process = None

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended by itself."""
        return self._process is not None and self._process.alive

    def make_database(self, name: str) -> None:
        """Creates a database where there is none of that name."""
        with closing(self._connect()) as connection:
            connection.autocommit = True  # CREATE DATABASE stands in no transaction.
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    @cached_property
    def _user(self) -> str | None:
        """Whom the server runs as; None: as this process does."""
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        found = next((name for name in ROOTS_STAND_INS if name in known), None)
        if found is None:
            raise ResourceError(
                "PostgreSQL does not run as root, and there is no user postgres or nobody", "start it as another user"
            )
        return found

    def _make_data(self) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        if self._user:
            shutil.chown(self._data, self._user)
            if subprocess.run(["test", "-w", str(self._data)], user=self._user, extra_groups=[]).returncode:
                hint = "name one that others may enter with --folder, or start as an ordinary user"
                raise UserError(
                    f"{self._user}, whom PostgreSQL runs as, cannot enter the folder", str(self._data), hint
                )
        with tempfile.NamedTemporaryFile("w", suffix=".initdb") as password:
            password.write(self._secrets.database_password)
            password.flush()
            if self._user:
                shutil.chown(password.name, self._user)
            options = {"--username": DATABASE_USER, "--pwfile": password.name, "--auth": "scram-sha-256"}
            command = [
                str(binary("initdb")),
                "-D",
                str(self._data),
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ]
            done = subprocess.run(
                command + [f"{name}={value}" for name, value in options.items()],
                env=_environment(),
                capture_output=True,
                text=True,
                user=self._user,
                extra_groups=[] if self._user else None,
                cwd="/",
            )
        if done.returncode:
            raise ResourceError(f"PostgreSQL's initdb failed: {(done.stderr.strip() or '?').splitlines()[-1]}")

    def _end_orphan(self) -> None:
        """Ends a server that outlived the process that had started it, and removes the note of one that is gone.

        Its number may belong to another process by now: PostgreSQL itself is known by the folder that it stands in.
        """
        note = self._data / "postmaster.pid"
        if not note.exists():
            return
        with suppress(psutil.NoSuchProcess, ValueError, IndexError):
            process = psutil.Process(int(note.read_text().splitlines()[0]))
            if Path(process.cwd()) == self._data.resolve():
                process.send_signal(signal.SIGINT)
                process.wait(GRACE_SECONDS)
        note.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def _connect(self) -> Any:
        return psycopg2.connect(self.uri("postgres"), passfile=str(self._secrets.database_file), connect_timeout=5)


def _version(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _environment() -> dict[str, str]:
    """Without settings of another PostgreSQL, and with messages that can be searched for."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
