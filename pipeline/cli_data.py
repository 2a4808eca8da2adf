"""The verbs of `data`: benchmarks are made, checked, and their maps cached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import places
from pipeline.console import Console
from pipeline.errors import ExitCode
from pipeline.options import APP_OPTIONS, DataRoot, Experiment, Json, Overrides

data_app = typer.Typer(help="Benchmarks: verify, make, cache.", **APP_OPTIONS)
make_app = typer.Typer(help="Make a benchmark that can be drawn.", **APP_OPTIONS)
data_app.add_typer(make_app, name="make")


@data_app.command()
def verify(
    benchmark: Annotated[str, typer.Argument(help="Name of a shipped benchmark, or path of a YAML file.")],
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> int:
    """Check a benchmark's files: everything that is wrong, in one table; exit code 2 when training could not work."""
    from dataclasses import asdict

    from mgmrn.data.doctor import verify as examine
    from pipeline.compose import load_benchmark_config

    findings = examine(data_root, load_benchmark_config(benchmark))
    console = Console(as_json)
    console.table(
        ["", "check", "finding", "remedy"], [[one.level, one.check, one.detail, one.remedy] for one in findings]
    )
    console.result({"findings": [asdict(one) for one in findings]})
    return ExitCode.BAD_INPUT if any(one.level == "error" for one in findings) else ExitCode.FINE


@data_app.command()
def cache(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Compute a frozen backbone's maps once, for every later run of the experiment."""
    from pipeline.cache import build_caches
    from pipeline.compose import load_experiment

    console = Console(as_json)
    config = load_experiment(experiment, overrides or []).config
    counts = build_caches(config, data_root, places.CACHE, console.line)
    images = ", ".join(f"{count} images for {split}" for split, count in counts.items())
    console.line(f"{images}: maps are in {places.CACHE}")
    console.result({"cache": str(places.CACHE), "images": counts})


@make_app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to make; serves as a data root.")] = places.DATA_ROOT,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    per_class: Annotated[int, typer.Option(help="Pictures of each class.")] = 40,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw; they do not change the result.")] = 1,
) -> None:
    """Draw the embedded benchmark."""
    from mgmrn.data.synthetic import make_synthetic

    console = Console()
    made = make_synthetic(
        out, seed=seed, per_class=per_class, size=size, workers=workers, progress=console.progress("pictures")
    )
    console.line(f"the synthetic benchmark is in {made}")


@make_app.command()
def standin(
    name: Annotated[str, typer.Argument(help="cub, sun or awa2.")],
    source: Annotated[Path, typer.Option(help="Data root with the real splits and attributes.")],
    out: Annotated[Path, typer.Option(help="Folder to make; serves as a data root.")],
    per_class: Annotated[int | None, typer.Option(help="Pictures of each class; without it, all in the list.")] = None,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw; they do not change the result.")] = 1,
) -> None:
    """Draw pictures for a real benchmark's lists and splits; whatever is made from them is labelled a stand-in."""
    from mgmrn.data.standin import make_standin

    console = Console()
    made = make_standin(
        name, source, out, per_class=per_class, size=size, workers=workers, progress=console.progress("pictures")
    )
    console.line(f"the stand-in for {name} is in {made}; figures made from it are no results")
