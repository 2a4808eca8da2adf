"""`python -m cluster.tracking`: the tracking server in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.tracking.server import TrackingServer, tracking_server
from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.cli.options import APP_OPTIONS
from pipeline.console import say
from pipeline.errors import exit_code
from pipeline.ports import LOOPBACK
from pipeline.tracking.connection import PASSWORD_VARIABLE, USERNAME_VARIABLE

FOLDER = places.HOME / "tracking"
PORT, DATABASE_PORT = 5000, 5433
POLL_SECONDS = 0.5

app = typer.Typer(**APP_OPTIONS | {"no_args_is_help": False})


@app.command()
def serve(
    folder: Annotated[Path, typer.Option(help="database, artifacts, secrets and logs")] = FOLDER,
    host: Annotated[str, typer.Option(help="address that MLflow listens at; PostgreSQL stays on loopback")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of MLflow")] = PORT,
    database_port: Annotated[int, typer.Option(min=1, max=65535, help="of PostgreSQL")] = DATABASE_PORT,
    allowed_hosts: Annotated[
        str | None, typer.Option(help="names that browsers may call it by, with commas between")
    ] = None,
) -> None:
    """PostgreSQL and an MLflow server with authentication, in the foreground."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        say("starting PostgreSQL and MLflow …")
        with tracking_server(folder, host, port, database_port, allowed_hosts) as server:
            _introduce(server)
            _watch(server)
    except KeyboardInterrupt:
        say("stopped")
    except (UserError, ResourceError) as error:
        say(f"error: {error}")
        raise typer.Exit(exit_code(error)) from error


def _introduce(server: TrackingServer) -> None:
    """Says where it is and where the password is, never the password."""
    secrets = server.credentials
    say(f"tracking server  {server.uri}")
    say(f"credentials      {USERNAME_VARIABLE} and {PASSWORD_VARIABLE}, set by: source {secrets.client_file}")
    say(f"runs             python -m pipeline train … --tracking-uri {server.uri}")
    say(
        f"studies          PGPASSFILE={secrets.database_file} python -m pipeline search … --study-storage {server.study_storage}"
    )
    say("Ctrl-C stops it")


def _watch(server: TrackingServer) -> None:
    while server.mlflow.alive and server.database.alive:
        time.sleep(POLL_SECONDS)
    name, log = ("MLflow", "mlflow.log") if server.database.alive else ("PostgreSQL", "postgresql.log")
    raise ResourceError(
        f"{name} ended by itself", f"see {server.credentials.client_file.parent / log}, then start it again"
    )


if __name__ == "__main__":
    sys.exit(app())
