"""The folder that a job runs in: made on the cluster for the job, and gone with it, so that nothing may be kept or looked for there."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TypeVar

import typer

from mgmrn.errors import UserError
from pipeline.job_environment import in_job
from pipeline.redaction import redact

Place = TypeVar("Place", str, Path)


def lies_in_job(place: str | Path) -> bool:
    """Whether a path, or the file of a database's address, is relative to the working folder.

    Args:
        place: a path, or an address like `sqlite:///FILE`.
    """
    scheme, separator, rest = str(place).partition("://")
    if separator:
        return scheme.partition("+")[0] == "sqlite" and not rest.startswith("//")
    return not PurePosixPath(str(place)).is_absolute()


def check_outlasts_job(place: str | Path, option: str, variable: str | None) -> None:
    """Refuses a place in the job's own folder.

    Args:
        place: what the option says.
        option: as it is written, like `--storage`.
        variable: environment variable that says the same on the cluster, if there is one.

    Raises:
        UserError: with what to give instead.
    """
    if not lies_in_job(place):
        return
    instead = (
        "an http:// address or sqlite:////FILE" if "://" in str(place) else "an absolute path that every host sees"
    )
    elsewhere = f", or set {variable} on the cluster's head" if variable else ""
    raise UserError(
        f"{redact(str(place))} would lie in the job's own folder, which goes with the job",
        option,
        f"give {instead}{elsewhere}",
    )


def outlasting(option: typer.CallbackParam, place: Place) -> Place:
    """Callback of every option that names such a place: in a job it is refused at once."""
    if in_job():
        variable = option.envvar
        check_outlasts_job(place, option.opts[0], variable if isinstance(variable, str) else None)
    return place
