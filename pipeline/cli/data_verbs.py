"""The verbs of `data`: benchmarks are found, imported, made and checked, and their maps cached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline import places
from pipeline.cli import completion
from pipeline.cli.options import APP_OPTIONS, DataRoot, Experiment, Json, Overrides
from pipeline.console import Console
from pipeline.errors import ExitCode

data_app = typer.Typer(help="Benchmarks: guide, import, make, verify, cache.", **APP_OPTIONS)
make_app = typer.Typer(help="Make a benchmark that can be drawn.", **APP_OPTIONS)
data_app.add_typer(make_app, name="make")


@data_app.command()
def guide(
    benchmark: Annotated[str, typer.Argument(help="cub, sun or awa2.")],
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Say what a benchmark consists of, where it is published, how large, on which terms, and where it belongs."""
    from pipeline.cli.guide import guide as guide_to
    from pipeline.cli.guide import lines

    console = Console(as_json)
    found = guide_to(benchmark, data_root)
    for line in lines(found):
        console.line(line)
    console.result(found.to_json())


@data_app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with a folder of pictures for every class.")],
    classes: Annotated[Path, typer.Option(help="Table (.csv, .json) with a row per class, a column per attribute.")],
    vectors: Annotated[Path, typer.Option(help="Word vectors: a text file of GloVe or word2vec, .gz too.")],
    oov: Annotated[
        Literal["error", "zero", "mean"],
        typer.Option(help="Words without a vector: refused, left out, or taken as the mean of the known ones."),
    ],
    name: Annotated[str, typer.Option(help="Of the benchmark that is made.")],
    out: Annotated[Path, typer.Option(help="Folder to make; serves as a data root.")],
    unseen: Annotated[
        Path | None, typer.Option(help="Text file with an unseen class a line; without it, they are drawn.")
    ] = None,
    unseen_share: Annotated[float, typer.Option(help="Share of the classes that is drawn as unseen.")] = 0.2,
    test_seen_share: Annotated[float, typer.Option(help="Share of a seen class's pictures kept for the test.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a benchmark of your own pictures: copied, split, checked, or refused with nothing left behind."""
    from dataclasses import asdict

    from mgmrn.makers.importing import ImportOptions, import_folder, read_class_names

    named = read_class_names(unseen) if unseen is not None else ()
    options = ImportOptions(name, oov, named, unseen_share, test_seen_share, seed)
    made = import_folder(folder, classes, vectors, out, options)
    console = Console(as_json)
    console.table(["", "check", "finding", "remedy"], [[f.level, f.check, f.detail, f.remedy] for f in made.findings])
    console.line(f"unseen classes: {', '.join(made.unseen)}; for validation: {', '.join(made.val)}")
    console.line(f"the benchmark is in {out}; to train on it: train cub --set benchmark.name={name} --data-root {out}")
    console.result({**asdict(made), "root": str(out)})


@data_app.command()
def verify(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="Name of a shipped benchmark, or path of a YAML file.", autocompletion=completion.shipped("benchmark")
        ),
    ],
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> int:
    """Check a benchmark's files: everything that is wrong, in one table; exit code 2 when training could not work."""
    from dataclasses import asdict

    from mgmrn.data.doctor import verify as examine
    from pipeline.config.compose import load_benchmark_config

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
    """Compute a frozen backbone's maps, or decode the pictures, once for all later runs; what is there is checked."""
    from pipeline.cache import build_caches
    from pipeline.config.compose import load_experiment

    console = Console(as_json)
    config = load_experiment(experiment, overrides or []).config
    counts = build_caches(config, data_root, places.CACHE, console.line)
    images = ", ".join(f"{count} images for {split}" for split, count in counts.items())
    console.line(f"{images}: what they need is in {places.CACHE}")
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
    from mgmrn.makers.synthetic import make_synthetic

    console = Console()
    made = make_synthetic(
        out, seed=seed, per_class=per_class, size=size, workers=workers, progress=console.progress("pictures")
    )
    console.line(f"the synthetic benchmark is in {made}")


@make_app.command()
def standin(
    name: Annotated[str, typer.Argument(help="cub, sun or awa2.")],
    source: Annotated[Path, typer.Option(help="Data root with the real splits and attributes.")],
    out: Annotated[Path, typer.Option(help="Data root that gets the pictures; it may hold others.")],
    per_class: Annotated[int | None, typer.Option(help="Pictures of each class; without it, all in the list.")] = None,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw; they do not change the result.")] = 1,
) -> None:
    """Draw pictures for a real benchmark's lists and splits: a benchmark of its own, like CUB-standin."""
    from mgmrn.makers.standin import make_standin

    console = Console()
    made = make_standin(
        name, source, out, per_class=per_class, size=size, workers=workers, progress=console.progress("pictures")
    )
    console.line(f"the benchmark {made} is in {out}; figures made from it are no results")
