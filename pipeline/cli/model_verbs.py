"""Verbs of trained models: `predict`, `explain`, `localise`, `promote`, `reproduce`."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mgmrn.errors import UserError
from pipeline import places
from pipeline.cli.options import Address, DataRoot, Json, RunOrModel, Storage, TrackingUri, as_folder
from pipeline.console import Console
from pipeline.errors import ExitCode
from pipeline.where import Where

TestSplit = Literal["test_unseen", "test_seen"]

models_app = typer.Typer()


@models_app.command()
def predict(
    model: RunOrModel,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures, and folders of them.")],
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Classes by attributes: .csv, .json, .npy.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes per picture.")] = 3,
    attributes: Annotated[int, typer.Option(min=0, help="Attributes that decided, per picture.")] = 3,
    json_lines: Annotated[bool, typer.Option("--json-lines", help="Print each picture's JSON object at once.")] = False,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    as_json: Json = False,
) -> int:
    """Name the best classes of pictures, unseen ones too, and the attributes that decided.

    Exit code 1 when some pictures could not be read, 2 when none could.
    """
    if json_lines and as_json:
        raise UserError("--json and --json-lines were both asked for", "--json-lines", "leave one of them out")
    from pipeline.models import predict as prediction

    console, lines = Console(as_json), Console(as_json=True)
    predictions = []
    for one in prediction.predict(model, images, classes, top, attributes, tracking_uri):
        predictions.append(one)
        if json_lines:
            lines.result(one.to_json())
    if not json_lines:
        prediction.show_predictions(predictions, console)
        console.result({"model": model, "pictures": [one.to_json() for one in predictions]})
    answered = [one.answer is not None for one in predictions]
    if all(answered):
        return ExitCode.FINE
    return ExitCode.SOME_FAILED if any(answered) else ExitCode.BAD_INPUT


@models_app.command()
def explain(
    model: RunOrModel,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; may be given often.")] = None,
    split: Annotated[TestSplit | None, typer.Option(help="Pictures of the benchmark; by default, test_unseen.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Pictures of each class of the split.")] = 2,
    out: Annotated[
        Path | None, typer.Option(callback=as_folder, help="Folder to write; by default, .mgmrn/explanations/MODEL.")
    ] = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Show the regions of every level in pictures, and the attributes that decided, as one page and a sheet per class."""
    if image and split:
        raise UserError("--image and --split were both asked for", "--split", "leave one of them out")
    from pipeline.models.explain import run_explain

    folder = out or places.EXPLANATIONS / re.sub(r"[^A-Za-z0-9._-]+", "_", model)
    console = Console(as_json)
    chosen, progress = split or "test_unseen", console.progress
    made = run_explain(model, image or (), chosen, per_class, folder, tracking_uri, data_root, progress)
    rows = [
        [one.subject.file, one.subject.truth or "–", one.best.name, one.runner_up.name, f"{one.margin:.2f}"]
        for one in made.pictures
    ]
    console.table(["picture", "is", "taken for", "rather than", "by"], rows)
    if found := made.overall:
        pointing, chance = found["pointing"], found["pointing_chance"]
        console.line(f"attention points at the part {pointing:.1%} of the time in all of {chosen}, chance {chance:.1%}")
    logged = f", also artifacts of run {made.run_id}" if made.run_id else ""
    console.line(f"the page is {made.page}, the sheets are beside it{logged}")
    console.result(made.to_json())


@models_app.command()
def localise(
    model: RunOrModel,
    split: Annotated[TestSplit, typer.Option(help="Pictures of the benchmark.")] = "test_unseen",
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Measure how often attention falls on the part that an attribute names, by part and level, and log it with the run.

    Needs pictures with annotated parts: CUB, drawings or stand-ins.
    """
    from pipeline.analysis.runs import LOCALISED
    from pipeline.models.localise import run_localise

    console = Console(as_json)
    found = run_localise(model, split, tracking_uri, data_root, console.progress("pictures"))
    rows = [
        [level, part, *(f"{100 * value[key]:.1f}" for key in LOCALISED), str(value["maps"])]
        for level, parts in found.figures.items()
        for part, value in parts.items()
    ]
    title = f"{found.pictures} pictures of {found.benchmark}, {split}, in percent"
    console.table(["level", "part", *LOCALISED.values(), "maps"], rows, title)
    if found.run_id:
        console.line(f"logged as metrics localise/{split}/… of run {found.run_id}")
    console.result(asdict(found))


@models_app.command()
def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id or name of a run of the final split.")],
    champion: Annotated[bool, typer.Option("--champion", help="Make it the champion, not a candidate.")] = False,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Register a run's model as mgmrn-BENCHMARK, and show its difference to the present champion.

    Its config needs three finished seeds on the final split, from committed code.
    """
    from pipeline.models.promote import promote as register
    from pipeline.tracking.registry import CANDIDATE, CHAMPION

    done = register(run, tracking_uri, alias=CHAMPION if champion else CANDIDATE)
    console = Console(as_json)
    done.show(console)
    console.result(done.to_json())


@models_app.command()
def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id or name of a finished run.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on with other code, data or weights.")] = False,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference on another machine.")] = 0.02,
    address: Address = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    as_json: Json = False,
) -> int:
    """Repeat a run from its record, and compare all figures; exit code 1 when they differ.

    On the same machine with the same versions, every figure must be the same to the last bit.
    """
    from pipeline.models.reproduce import reproduce as run_again

    where = Where(tracking_uri, data_root, storage, address)
    done = run_again(run, where, anyway=anyway, tolerance=tolerance)
    console = Console(as_json)
    done.show(console)
    console.result(done.to_json())
    return ExitCode.FINE if done.verdict in ("equal", "within tolerance") else ExitCode.SOME_FAILED
