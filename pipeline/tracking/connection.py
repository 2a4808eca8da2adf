"""Connection to a tracking store: check of the address, a new database, one sentence for each error."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from pipeline.databases import CONNECT_SECONDS, SQLITE, sqlite_file, why_not_writable
from pipeline.errors import TrackingError
from pipeline.redaction import redact, redact_address

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
USERNAME_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_START_HINT = "start the server, or leave out --tracking-uri to track in a local file"
_GIVEN_UP = re.compile(r"""Max retries exceeded .*Caused by \w+\(["'](?P<reason>.*?)["']\)""")
"""Last message of the HTTP client, in which the reason follows address and path."""
_OF_DATABASE = re.compile(r"\((?:\w+\.)+\w*Error\) (?P<reason>.+)")
"""Error of a database in a message of SQLAlchemy, among advice and statements."""


def open_client(uri: str) -> MlflowClient:
    """Open MLflow's client for a store; creates the tables of a new database."""
    check_reachable(uri)
    quieten_mlflow()
    from mlflow.tracking import MlflowClient

    with translated(uri):
        if uri.startswith(SQLITE) and not sqlite_file(uri).exists():
            _make_database(sqlite_file(uri))
        return MlflowClient(tracking_uri=uri)


def check_reachable(uri: str) -> None:
    """Raise a `TrackingError` at once if nothing answers, or for an address of a kind that MLflow does not write to."""
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    if scheme == "sqlite":
        if reason := why_not_writable(sqlite_file(uri)):
            raise TrackingError(f"unreachable: the tracking database cannot be written ({reason})", uri)
        return
    problem = "nothing answers at the tracking address"
    try:
        host, port = _host_and_port(uri, scheme)
        socket.create_connection((host, port), CONNECT_SECONDS).close()
        if scheme in ("http", "https"):
            problem = "no MLflow server answers"
            # No proxy: a server on loopback is behind none.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            parts = urlsplit(uri)
            place = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
            opener.open(f"{scheme}://{place}/health", timeout=CONNECT_SECONDS).close()
    except (OSError, HTTPException) as error:
        raise TrackingError(f"unreachable: {problem} ({error})", redact_address(uri), _START_HINT) from error


def _host_and_port(uri: str, scheme: str) -> tuple[str, int]:
    """Host and port of a server as its client reads them. Raises `TrackingError`, which quotes no part of a password."""
    # SQLAlchemy takes a long time to load.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with contextlib.suppress(ValueError, ArgumentError):
        if scheme in PORTS:
            found = (urlsplit if scheme.startswith("http") else make_url)(uri)
            host = found.hostname if isinstance(found, SplitResult) else found.host
            if host and len(host) < 254:
                return host, found.port or PORTS[scheme]
    hint = "use sqlite:///FILE, http(s)://HOST:PORT or postgresql://…, with %2F, %23, %3F, %40, %25 for / # ? @ % in a password"
    raise TrackingError(f"'{redact_address(uri)}' is no tracking address", "--tracking-uri", hint)


def quieten_mlflow() -> None:
    """Turn off telemetry, long retries, log messages and progress bars, except where the user has set them."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        # MLflow logs a traceback for each failure; `translated` explains it.
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        # MLflow prints links on standard output, which is for the result alone.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        os.environ.pop(variable, None)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())  # If MLflow is imported already.
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # urllib3 warns of each retry.


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Convert exceptions of MLflow, its HTTP client and its database to `TrackingError`."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise _explained(error, redact_address(uri)) from error


def _make_database(file: Path) -> None:
    """Create MLflow's tables in a new database, which appears as a whole or not at all, unless another command has created it meanwhile.

    MLflow creates its tables one by one and can never open a database in which it was interrupted.
    """
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory(prefix="mgmrn-") as folder:
        made = Path(folder, "made.db")
        MlflowClient(tracking_uri=f"{SQLITE}{made}")
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
        try:
            shutil.copyfile(made, whole)
            # Refused if the file exists, and on a disk without links, where MLflow then creates its tables in place.
            with contextlib.suppress(OSError):
                os.link(whole, file)
        finally:
            whole.unlink(missing_ok=True)


def _explained(error: Exception, place: str) -> TrackingError:
    if _status(error) == HTTPStatus.UNAUTHORIZED:
        given = PASSWORD_VARIABLE in os.environ or "@" in place
        hint = f"set {USERNAME_VARIABLE} and {PASSWORD_VARIABLE} to those of an account of this server"
        return TrackingError(f"the tracking server {'refuses these' if given else 'asks for'} credentials", place, hint)
    if place.startswith(SQLITE) and not sqlite_file(place).exists():
        return TrackingError("the tracking database was removed", place)
    text = str(error).strip() or type(error).__name__
    database = _OF_DATABASE.search(text)
    first_line = redact(database["reason"] if database else text.splitlines()[0])
    if _status(error) == HTTPStatus.FORBIDDEN:
        return TrackingError(f"the tracking server does not allow this account to do that: {first_line}", place)
    if given_up := _GIVEN_UP.search(first_line):
        reason = given_up["reason"].rpartition(": ")[2]
        return TrackingError(f"the tracking server does not answer: {reason}", place)
    return TrackingError(f"the tracking store failed: {first_line}", place)


def _status(error: Exception) -> int | None:
    """HTTP status of an error of MLflow or of its HTTP client; None without any."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)
