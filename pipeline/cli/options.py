"""Arguments and options that several verbs share."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from mgmrn.errors import UserError
from pipeline.cli.completion import shipped
from pipeline.databases import SQLITE, database_address
from pipeline.job_environment import in_job
from pipeline.redaction import redact
from pipeline.storage import StoragePath

Place = TypeVar("Place", str, Path, StoragePath)

APP_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # Help in plain text: the package that draws boxes takes longer to load than all the rest.
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def check_outlasts_job(place: str | Path | StoragePath, option: str, variable: str | None) -> None:
    """Refuse a path, or an address like `sqlite:///FILE`, in the job's working folder; the variable sets the option on the cluster."""
    text = str(place)
    if ("://" in text and not text.startswith(SQLITE)) or text.removeprefix(SQLITE).startswith("/"):
        return
    instead = "an http:// address or sqlite:////FILE" if "://" in text else "an absolute path that every host sees"
    elsewhere = f", or set {variable} on the cluster's head" if variable else ""
    message = f"{redact(text)} would lie in the job's own folder, which goes with the job"
    raise UserError(message, option, f"give {instead}{elsewhere}")


def as_folder(option: typer.CallbackParam, place: Path | None) -> Path | None:
    """Callback of options that name a folder, which need not exist: `~` is the home folder; what cannot be a folder is refused."""
    if place is None:
        return None
    place = Path(os.path.expanduser(place))
    nearest = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not os.path.isdir(nearest):
        raise UserError(f"{nearest} is a file or a broken link where a folder must be", option.opts[0])
    return place


def _outlasting(option: typer.CallbackParam, place: Place) -> Place:
    """Callback of options that name a place of data or results, which in a job must outlast the job."""
    if isinstance(place, Path):
        if re.match("[a-z0-9]+:/", str(place)):
            hint = "copy it to a folder that every host has, and name that folder; cluster/README.md has a command for each kind of cluster"
            raise UserError(f"data sets are read from a disk, not from {redact(str(place))}", option.opts[0], hint)
        place = Path(os.path.expanduser(place))  # Whether it can be used is for the host that uses it to say.
    elif isinstance(place, StoragePath):
        place = StoragePath.parse(place)
    elif place.lower().startswith("sqlite"):
        place = database_address(place, option.opts[0])
    if in_job():
        check_outlasts_job(place, option.opts[0], option.envvar if isinstance(option.envvar, str) else None)
    return place


def _seconds(text: str) -> float:
    """Seconds of a duration like `90s`, `15m` or `2h`."""
    if match := re.fullmatch("([0-9]{1,6})([smh])", str(text)):
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    raise typer.BadParameter(f"a duration is a whole number of s, m or h, like 15m, got '{text}'")


def _config(group: str, metavar: str | None = None) -> Any:
    text = f"Name of a shipped {group}, or path of a YAML file."
    return typer.Argument(metavar=metavar, help=text, autocompletion=shipped(group))


Experiment = Annotated[str, _config("experiment")]
Search = Annotated[str, _config("search", "SEARCH")]
Ablation = Annotated[str, _config("ablation", "NAME")]
Benchmark = Annotated[str, _config("benchmark")]
RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="Id or name of a run, mgmrn-CUB@champion, or path of a model.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="One value; may be repeated.")]
DataRoot = Annotated[Path, typer.Option(envvar="MGMRN_DATA_ROOT", callback=_outlasting, help="Folder of benchmarks.")]
TrackingUri = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", callback=_outlasting, help="MLflow's address.")]
Storage = Annotated[
    StoragePath,
    typer.Option(
        metavar="FOLDER|URL",
        parser=lambda text: StoragePath(str(text)),
        callback=_outlasting,
        help="Checkpoints: a folder, shared by all hosts, or s3://BUCKET/PREFIX, gs://….",
    ),
]
StudyStorage = Annotated[str, typer.Option(envvar="MGMRN_STUDY_STORAGE", callback=_outlasting, help="Study database.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; by default, Ray is started here.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="By default, the workers share the CPUs evenly.")]
Gpus = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="N|PART", help="0.125 lets 8 runs share one; by default, 1 where the cluster has enough."
    ),
]
WaitForHosts = Annotated[
    float | None,
    typer.Option(metavar="15m", parser=_seconds, help="Time in which a cluster that grows may start hosts."),
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Runs at once; by default, as many as fit.")]
LogModel = Annotated[Literal["final", "all", "none"], typer.Option(help="Runs whose trained model is logged.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; text for people goes to standard error.")]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse the value of `--seeds`: different whole numbers from 0 to 2³² - 1, separated by commas."""
    parts = text.split(",")
    if not all(re.fullmatch("[0-9]{1,10}", part) and int(part) < 2**32 for part in parts):
        message = f"seeds must be whole numbers below 2³² with commas between, got '{text}'"
        raise UserError(message, "--seeds", "like 0,1,2")
    seeds = tuple(map(int, parts))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be different, got '{text}'", "--seeds")
    return seeds
