"""Services that a run connects to: ports on this machine, a Ray cluster, the tracking store; and permissions of files with secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.doctor.line import Line, lacking, wrong
from pipeline.errors import TrackingError
from pipeline.jobs.server import TOKEN_FILE, TOKEN_SOURCES
from pipeline.redaction import redact
from pipeline.train.cluster import knock
from pipeline.train.private_instance import private_instance
from pipeline.train.start_checks import check_start_here

PORTS = {8265: "Ray's job server", 6379: "a Ray head", 5000: "the MLflow UI"}
"""Ports of Ray and MLflow; a run on this machine alone needs none of them."""
_EXPECTED = ("ray", "gcs_server", "mlflow", "python", "uvicorn", "gunicorn")
"""Beginnings of the names of programs that are expected at these ports."""


def port_lines() -> Iterator[Line]:
    """Programs that listen at the ports of Ray and MLflow, as far as this user may see them."""
    try:
        listening = {
            one.laddr.port: one.pid for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN
        }
    except psutil.AccessDenied:
        yield Line("warn", "ports", "who listens may not be seen by this user", "nothing has to be done")
        return
    for port, use in PORTS.items():
        name = f"port {port}"
        if port not in listening:
            yield Line("ok", name, f"free, for {use}")
            continue
        holder = _name_of(listening[port])
        if holder is not None and holder.startswith(_EXPECTED):
            yield Line("ok", name, f"taken by {holder}, process {listening[port]}")
        else:
            found = f"taken by {holder or 'a process of another user'}, not free for {use}"
            yield Line("warn", name, found, "end that program, or start Ray or MLflow at another port")


def _name_of(pid: int | None) -> str | None:
    try:
        return psutil.Process(pid).name() if pid else None
    except psutil.Error:
        return None


def ray_line(address: str | None) -> Line:
    """Whether Ray can start on this machine; where a cluster is named, whether its head answers."""
    given = address or os.environ.get("RAY_ADDRESS")
    if given is None:
        try:
            with private_instance():
                check_start_here()
        except ResourceError as error:
            return lacking("Ray", error.message, error.hint)
        return Line("ok", "Ray", "no cluster was named: it is started here for each command")
    if not given.rpartition(":")[2].isdigit():
        return Line("warn", "Ray", f"{given} is not HOST:PORT, so it was not tried", "name the head, like HEAD:6379")
    try:
        knock(given)
    except OSError as error:
        return lacking(
            "Ray",
            f"nothing answers at {given} ({error})",
            "start the head, open its port, or leave out --address to run here",
        )
    return Line("ok", "Ray", f"a service answers at {given}")


def tracking_line(uri: str) -> Line:
    """Whether runs can be tracked in a store; a server is asked with the credentials of this user."""
    # Imports SQL drivers and, for a server, MLflow's client.
    from pipeline.tracking.connection import check_reachable
    from pipeline.tracking.store import TrackingStore

    shown = redact(uri)
    try:
        check_reachable(uri)
        if uri.startswith("http"):
            TrackingStore.connect(uri).runs_of(("mgmrn/doctor",), "")
    except (TrackingError, UserError) as error:
        return wrong("tracking", f"{shown}: {error.message}", error.hint)
    return Line("ok", "tracking", f"{shown} can be reached")


def secret_lines() -> Iterator[Line]:
    """Files with passwords and tokens that others on this machine may read."""
    token = os.environ.get(TOKEN_SOURCES[1])
    files = (
        Path(token) if token else Path.home() / TOKEN_FILE,
        Path.home() / ".mlflow" / "credentials",
        places.HOME / "tracking" / "credentials.env",
        Path.home() / ".pgpass",
    )
    found = [file for file in files if file.is_file()]
    open_ones = [file for file in found if stat.S_IMODE(file.stat().st_mode) & 0o077]
    for file in open_ones:
        mode = f"{stat.S_IMODE(file.stat().st_mode):o}"
        yield wrong("secrets", f"{file} has mode {mode}: others may read it", f"chmod 600 {file}")
    if not open_ones:
        names = ", ".join(map(str, found))
        yield Line("ok", "secrets", f"you alone may read {names}" if found else "no token or password file")
