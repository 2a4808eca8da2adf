"""Addresses of databases that are opened through SQLAlchemy, and the files of SQLite behind them."""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from mgmrn.errors import UserError

CONNECT_SECONDS = 5.0
PROBE_BYTES = 256 * 1024
"""Free space that a disk must have for a database to be opened."""
SQLITE = "sqlite:///"


def database_address(address: str, option: str) -> str:
    """An address of SQLite (`~` is the home folder; a `UserError` names the option without a file) or PostgreSQL as SQLAlchemy takes it."""
    address = address.strip()
    scheme, separator, place = address.partition("://")
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        return f"postgresql+psycopg2{separator}{place}"
    if not scheme.lower().startswith("sqlite"):
        return address
    if not place.startswith("/") or place.endswith(("/", "/:memory:")) or "?" in place:
        hint = f"write {SQLITE}FILE, or {SQLITE}/FOLDER/FILE from the root, with %3F for ? and %25 for %"
        raise UserError(f"'{address}' names no file for a database", option, hint)
    return f"{SQLITE}{os.path.expanduser(place[1:])}"


def sqlite_file(address: str) -> Path:
    """Absolute path of the database file behind `sqlite:///FILE`."""
    return Path(os.path.realpath(unquote(address.removeprefix(SQLITE))))


def is_missing(address: str) -> bool:
    """Whether an address names a file of SQLite that does not exist."""
    return address.startswith(SQLITE) and not sqlite_file(address).exists()


def why_not_writable(file: Path) -> str | None:
    """Reason why a file of SQLite cannot be made, or opened and locked, or its journal be written beside it; None where all is well."""
    if file.is_dir():
        return "it is a folder"
    try:
        nearest = next(folder for folder in file.parents if os.path.lexists(folder))
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(bytes(PROBE_BYTES))
        if os.path.lexists(file):
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", CONNECT_SECONDS, uri=True)) as database:
                database.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        return str(getattr(error, "strerror", None) or error)
    return None
