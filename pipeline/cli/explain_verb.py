"""The verb `explain`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from mgmrn.errors import UserError
from pipeline import places
from pipeline.cli.options import DataRoot, Json, RunOrModel, TrackingUri
from pipeline.console import Console

explain_app = typer.Typer()


@explain_app.command()
def explain(
    model: RunOrModel,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; may be given often.")] = None,
    split: Annotated[
        Literal["test_unseen", "test_seen"] | None,
        typer.Option(help="Pictures of the benchmark; test_unseen where nothing is said."),
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Pictures of each class of the split.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and the sheets; without it .mgmrn/explanations/MODEL.")
    ] = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Show what every level looked at in pictures, and which attributes decided, as one page and a sheet per class."""
    if image and split:
        raise UserError("--image and --split were both asked for", "--split", "leave one of them out")
    from pipeline.models.explain.run import ExplainRequest, run_explain

    folder = out or places.EXPLANATIONS / re.sub(r"[^A-Za-z0-9._-]+", "_", model)
    console = Console(as_json)
    request = ExplainRequest(
        model, tuple(image or ()), split or "test_unseen", per_class, folder, tracking_uri, data_root
    )
    made = run_explain(request, console.progress("pictures"))
    rows = [
        [one.subject.file, one.subject.truth or "–", one.best.name, one.runner_up.name, f"{one.margin:.2f}"]
        for one in made.content.pictures
    ]
    console.table(["picture", "is", "taken for", "rather than", "by"], rows)
    if (pointing := made.content.overall) is not None:
        console.line(f"attention points at the part {pointing.accuracy:.1%} of the time, chance {pointing.chance:.1%}")
    logged = f", also artifacts of run {made.run_id}" if made.run_id else ""
    console.line(f"the page is {made.page}, the sheets are beside it{logged}")
    console.result(made.to_json())
