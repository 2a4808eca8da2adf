"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import typer

from mgmrn.errors import UserError
from pipeline.cli import completion
from pipeline.job_environment import in_job
from pipeline.redaction import redact

Place = TypeVar("Place", str, Path)

APP_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # Help in plain text: the package that draws boxes takes longer to load than all the rest.
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Of every group of verbs."""


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
    """Refuse a place in the job's working folder, which is made on the cluster for the job and removed with it.

    Args:
        place: value of the option.
        option: as it is written, like `--storage`.
        variable: environment variable that sets the same on the cluster, if there is one.

    Raises:
        UserError: when the place is relative, with what to give instead.
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
    """Callback of options that name a place of data or results: in a job it must outlast the job."""
    if in_job():
        variable = option.envvar
        check_outlasts_job(place, option.opts[0], variable if isinstance(variable, str) else None)
    return place


Experiment = Annotated[
    str,
    typer.Argument(
        help="Name of a shipped experiment, or path of a YAML file.", autocompletion=completion.shipped("experiment")
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override one value; may be given often.")
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="Id or name of a run, mgmrn-CUB@champion or mgmrn-CUB/3 in the registry, or path of an exported model.",
    ),
]
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root",
        envvar="MGMRN_DATA_ROOT",
        callback=outlasting,
        help="Folder of the benchmarks in the xlsa17 layout.",
    ),
]
TrackingUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", callback=outlasting, help="MLflow server or database."
    ),
]
WorkerRange = Annotated[
    str,
    typer.Option("--workers", metavar="N|A..B", help="Processes that share every batch; a range grows and shrinks."),
]
GpusPerWorker = Annotated[
    int | None, typer.Option(min=0, help="Without it, one if the cluster has one for every worker.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; without it, Ray is started here.")]
Storage = Annotated[
    Path, typer.Option(callback=outlasting, help="Folder of checkpoints; on several hosts a shared one.")
]
StudyStorage = Annotated[
    str,
    typer.Option(
        envvar="MGMRN_STUDY_STORAGE",
        callback=outlasting,
        help="Database of studies: sqlite:///FILE or postgresql://….",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; text for people goes to standard error.")]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds in the value of `--seeds`.

    Raises:
        UserError: for anything but different whole numbers from 0 on, separated by commas.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"seeds must be whole numbers with commas between, got '{text}'"
        raise UserError(message, "--seeds", "like 0,1,2") from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be different and not negative, got '{text}'", "--seeds")
    return seeds
