"""The secrets of a tracking server: made once, each in a file that its owner alone can read."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mgmrn.errors import UserError
from pipeline.tracking.connection import PASSWORD_VARIABLE, USERNAME_VARIABLE

ADMIN = "admin"
DATABASE_USER = "mgmrn"


@dataclass(frozen=True)
class Credentials:
    """What the server and whoever talks to it must know. Prints without the secrets."""

    client_file: Path
    """The two variables of a driver, as a shell reads them."""
    database_file: Path
    """The database's password, as libpq reads it (`PGPASSFILE`)."""
    password: str = field(repr=False)
    """Of the user `admin`."""
    flask_key: str = field(repr=False)
    """Signs the browser's forms; the same after every start."""
    database_password: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment."""
        return {USERNAME_VARIABLE: ADMIN, PASSWORD_VARIABLE: self.password}


def credentials(folder: Path) -> Credentials:
    """Reads the secrets of a server's folder; those that are not there yet are made.

    Raises:
        UserError: when a file of secrets holds something else.
    """
    client_file, database_file = folder / "credentials.env", folder / "pgpass"
    return Credentials(
        client_file,
        database_file,
        password=_secret(client_file, _client_text, _client_password),
        flask_key=_secret(folder / "flask.key", str, str.strip),
        database_password=_secret(
            database_file, lambda word: f"*:*:*:{DATABASE_USER}:{word}\n", lambda text: text.strip().rpartition(":")[2]
        ),
    )


def _client_text(password: str) -> str:
    return f"export {USERNAME_VARIABLE}={ADMIN}\nexport {PASSWORD_VARIABLE}={password}\n"


def _client_password(text: str) -> str:
    lines = (word.partition("=") for word in shlex.split(text))
    return next((value for name, _, value in lines if name == PASSWORD_VARIABLE), "")


def _secret(file: Path, write: Callable[[str], str], read: Callable[[str], str]) -> str:
    """The secret in a file; a new one, in a new file of mode 600, where there is none."""
    if not file.exists():
        secret = secrets.token_urlsafe(24)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(write(secret))
        return secret
    secret = read(file.read_text(encoding="utf-8"))
    if not secret:
        raise UserError(
            "the file holds no secret", str(file), "bring it back from a backup; the database knows the old one"
        )
    return secret
