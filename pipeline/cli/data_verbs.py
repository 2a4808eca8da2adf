"""The verbs of `data`: `guide`, `import`, `verify`, `cache`, `make synthetic`, `make standin`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mgmrn.errors import UserError
from pipeline import places
from pipeline.cli.options import APP_OPTIONS, Benchmark, DataRoot, Experiment, Json, Overrides, as_folder
from pipeline.console import Console, shell_command
from pipeline.errors import ExitCode

if TYPE_CHECKING:
    from mgmrn.config import ExperimentConfig
    from mgmrn.data.doctor import Finding

GUIDE = Path(__file__).with_name("guide.yaml")

data_app = typer.Typer(help="Benchmarks: guide, import, make, verify, cache.", **APP_OPTIONS)
make_app = typer.Typer(help="Make a benchmark that can be drawn.", **APP_OPTIONS)
data_app.add_typer(make_app, name="make")

Unknown = Literal["error", "zero", "mean"]
Made = Annotated[Path, typer.Option(callback=as_folder, help="Folder to make; serves as a data root.")]
Side = Annotated[int, typer.Option(min=32, max=512, help="Side of a picture in pixels.")]
Drawers = Annotated[int, typer.Option(min=1, help="Processes that draw; they do not change the result.")]


@data_app.command()
def guide(
    benchmark: Annotated[str, typer.Argument(help="cub, sun or awa2.")],
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """List the parts of a published benchmark: page, size, terms, and folder in the data root. Downloads no file."""
    import yaml

    from mgmrn.data.published import PUBLISHED

    parts = yaml.safe_load(GUIDE.read_text(encoding="utf-8"))
    if (name := benchmark.upper()) not in parts:
        hint = "one of cub, sun, awa2; `data make synthetic` draws one, `data import` takes a folder of your own"
        raise UserError(f"there is no guide to {benchmark}", "BENCHMARK", hint)
    splits, verify = PUBLISHED[name], shell_command("data", "verify", name.lower(), "--data-root", data_root)
    console = Console(as_json)
    console.line(
        f"{parts[name]['title']}: {splits.images:,} pictures, {splits.seen} seen and {splits.unseen} unseen classes, "
        f"{splits.attributes} attributes; trainval / test_seen / test_unseen "
        f"{splits.trainval} / {splits.test_seen} / {splits.test_unseen}"
    )
    for number, item in enumerate(parts[name]["items"], start=1):
        item["there"] = all((data_root / file).exists() for file in item.pop("files"))
        console.line(f"\n{number}. {item['what']}" + (" (is there)" if item["there"] else ""))
        for key in ("page", "size", "terms"):
            console.line(f"   {key:6} {item[key]}")
        console.line(f"   place  {item['place']} in the data root; {item['hint']}")
    console.line("\nWhat backbones have seen of the unseen classes; a table that mixes them says so:")
    for corpus, seen in parts[name]["pretraining"].items():
        console.line(f"   {corpus:21} {seen}")
    console.line(f"\nthen   {verify}\n       which recognises the lists by their digest, {splits.digest[:12]}")
    console.result(parts[name] | {"splits": vars(splits) | {"images": splits.images}, "verify": verify})


@data_app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with a folder of pictures for every class.")],
    classes: Annotated[Path, typer.Option(help="Table (.csv, .json) with a row per class, a column per attribute.")],
    vectors: Annotated[Path, typer.Option(help="Word vectors: a text file of GloVe or word2vec, .gz too.")],
    oov: Annotated[Unknown, typer.Option(help="Words without a vector: refuse, leave out, or use the mean.")],
    name: Annotated[str, typer.Option(help="Name of the benchmark that is made.")],
    out: Made,
    unseen: Annotated[Path | None, typer.Option(help="Text file, an unseen class a line; else they are drawn.")] = None,
    unseen_share: Annotated[float, typer.Option(help="Share of the classes that is drawn as unseen.")] = 0.2,
    test_seen_share: Annotated[float, typer.Option(help="Share of a seen class's pictures kept for the test.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn classes and pictures.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a benchmark of your own pictures: copied, split and checked; a refused one leaves no file behind."""
    from dataclasses import asdict

    from mgmrn.makers.importing import ImportOptions, import_folder, read_class_names

    named = read_class_names(unseen) if unseen is not None else ()
    options = ImportOptions(name, oov, named, unseen_share, test_seen_share, seed)
    made = import_folder(folder, classes, vectors, out, options)
    console = Console(as_json)
    _show_findings(made.findings, console)
    console.line(f"unseen classes: {', '.join(made.unseen)}; for validation: {', '.join(made.val)}")
    train = shell_command("train", "cub", "--set", f"benchmark.name={name}", "--data-root", out)
    console.line(f"the benchmark is in {out}; to train on it: {train}")
    console.result({**asdict(made), "root": str(out)})


@data_app.command()
def verify(benchmark: Benchmark, data_root: DataRoot = places.DATA_ROOT, as_json: Json = False) -> int:
    """Check a benchmark's files and list all findings in one table; exit code 2 when training could not work."""
    from dataclasses import asdict

    from mgmrn.data.doctor import verify as examine
    from pipeline.config.compose import load_benchmark_config

    findings = examine(data_root, load_benchmark_config(benchmark))
    console = Console(as_json)
    _show_findings(findings, console)
    console.result({"findings": [asdict(one) for one in findings]})
    return ExitCode.BAD_INPUT if any(one.level == "error" for one in findings) else ExitCode.FINE


@data_app.command()
def cache(
    experiment: Experiment, overrides: Overrides = None, data_root: DataRoot = places.DATA_ROOT, as_json: Json = False
) -> None:
    """Compute the maps of a frozen backbone once for all later runs; existing files are checked."""
    from pipeline.config.compose import load_experiment

    console = Console(as_json)
    config = load_experiment(experiment, overrides or []).config
    counts = build_caches(config, data_root, places.CACHE, console.line)
    images = ", ".join(f"{count} images for {split}" for split, count in counts.items())
    console.line(f"{images}, cached in {places.CACHE}")
    console.result({"cache": str(places.CACHE), "images": counts})


def build_caches(
    config: ExperimentConfig, data_root: Path, cache_root: Path, progress: Callable[[str], None]
) -> dict[str, int]:
    """Compute the maps of all images of both splits, where they are missing or damaged; returns the number of images of each split.

    Raises `UserError` for a config that caches nothing or a bad benchmark, and `ResourceError` when they do not fit on the disk.
    """
    if not config.cache_features:
        raise UserError("the experiment caches no maps", "cache_features", "set it to true, with a frozen backbone")
    from mgmrn.data.feature_cache import remove_check_notes
    from mgmrn.data.splits import load_final, load_tune
    from mgmrn.device import usual_device
    from mgmrn.feed import cached_maps
    from pipeline.config.compose import resolve_weights

    config = resolve_weights(config, data_root)
    remove_check_notes(cache_root)
    device = usual_device()
    counts: dict[str, int] = {}
    for data in (load_tune(data_root, config.benchmark), load_final(data_root, config.benchmark)):
        maps = cached_maps(config, data, cache_root, device, progress)
        counts[data.split] = sum(len(part.rows) for part in maps)
    return counts


def _show_findings(findings: Iterable[Finding], console: Console) -> None:
    rows = [[one.level, one.check, one.detail, one.remedy] for one in findings]
    console.table(["", "check", "finding", "remedy"], rows)


@make_app.command()
def synthetic(
    out: Made = places.DATA_ROOT,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    per_class: Annotated[int, typer.Option(min=5, help="Pictures of each class; a fifth is test_seen.")] = 40,
    size: Side = 64,
    workers: Drawers = 1,
) -> None:
    """Draw the embedded benchmark."""
    from mgmrn.makers.synthetic import make_synthetic

    console = Console()
    progress = console.progress("pictures")
    made = make_synthetic(out, seed=seed, per_class=per_class, size=size, workers=workers, progress=progress)
    console.line(f"the synthetic benchmark is in {made}")


@make_app.command()
def standin(
    name: Annotated[str, typer.Argument(help="cub, sun or awa2.")],
    source: Annotated[Path, typer.Option(callback=as_folder, help="Data root with the real splits and attributes.")],
    out: Annotated[
        Path, typer.Option(callback=as_folder, help="Data root that gets the pictures; it may hold others.")
    ],
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each class; without it, all in the list.")
    ] = None,
    size: Side = 64,
    workers: Drawers = 1,
) -> None:
    """Draw pictures for a real benchmark's lists and splits: a benchmark of its own, like CUB-standin."""
    from mgmrn.makers.standin import make_standin

    console = Console()
    progress = console.progress("pictures")
    made = make_standin(name, source, out, per_class=per_class, size=size, workers=workers, progress=progress)
    console.line(f"the benchmark {made} is in {out}; figures made from it are no results")
