"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mgmrn.errors import UserError
from pipeline.cli import completion
from pipeline.cli.job_folder import outlasting

APP_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # Help in plain text: the package that draws boxes takes longer to load than all the rest.
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Of every group of verbs."""

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
