"""The verbs that measure, below `bench`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import places
from pipeline.cli.options import (
    APP_OPTIONS,
    Address,
    DataRoot,
    Experiment,
    GpusPerWorker,
    Json,
    Overrides,
    Storage,
    parse_worker_numbers,
)
from pipeline.console import Console

if TYPE_CHECKING:
    from pipeline.bench.report import BenchReport

bench_app = typer.Typer(help="Measure parts of the code.", **APP_OPTIONS)

Record = Annotated[bool, typer.Option("--record", help="Append the figures to docs/benchmarks.md.")]
Repeats = Annotated[int, typer.Option(min=1, help="Rounds; what is compared is measured in turn in each.")]


@bench_app.command("step")
def bench_step(
    variants: Annotated[
        str | None,
        typer.Option(metavar="reference,joint", help="What is compared; without it, all that fit the device."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the images; without it, 448 on a GPU, else 224.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a step; without it, 16 on a GPU, else 4.")] = None,
    width: Annotated[int, typer.Option(min=32, help="D of the released mathematics.")] = 2048,
    backbone: Annotated[str, typer.Option(help="Name of a torchvision ResNet.")] = "resnet101",
    repeats: Repeats = 5,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time training steps against the released mathematics done plainly: images/s, peak memory, share of the machine's peak."""
    from dataclasses import replace

    from mgmrn.device import usual_device
    from pipeline.bench.step import run
    from pipeline.bench.step_variants import ON_GPU, VARIANTS, default_size

    device = usual_device()
    usual = default_size(device)
    chosen = variants.split(",") if variants else ON_GPU if device.type == "cuda" else VARIANTS
    asked = replace(usual, images=size or usual.images, batch=batch or usual.batch, width=width, backbone=backbone)
    _show_bench(run(chosen, asked, device, repeats), Console(as_json), record=record)


@bench_app.command("eval")
def bench_eval(record: Record = False, as_json: Json = False) -> None:
    """Time scoring, and the exact seen–unseen curve against a sweep over γ."""
    from pipeline.bench.eval import run

    _show_bench(run(), Console(as_json), record=record)


@bench_app.command("cache")
def bench_cache(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time an epoch on cached maps against one from pictures, and how a cache is built, read and shared."""
    from pipeline.bench.cache import run
    from pipeline.config.compose import load_experiment

    config = load_experiment(experiment, overrides or []).config
    _show_bench(run(config, data_root, places.CACHE.resolve()), Console(as_json), record=record)


@bench_app.command("head")
def bench_head(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    repeats: Repeats = 5,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time the head's training on cached maps against the same head written out plainly."""
    from pipeline.bench.head import run
    from pipeline.config.compose import load_experiment

    config = load_experiment(experiment, overrides or []).config
    _show_bench(run(config, data_root, places.CACHE.resolve(), repeats), Console(as_json), record=record)


@bench_app.command("data")
def bench_data(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    loader_workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: a thread.")] = 0,
    repeats: Repeats = 5,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time decoding and augmenting against the training step that takes the pictures, and how long the step waits."""
    from pipeline.bench.data import run
    from pipeline.config.compose import load_experiment

    config = load_experiment(experiment, overrides or []).config
    report = run(config, data_root, places.CACHE.resolve(), loader_workers, repeats)
    _show_bench(report, Console(as_json), record=record)


@bench_app.command("overhead")
def bench_overhead(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Of the worker, and threads of the plain loop; without it, all.")
    ] = None,
    repeats: Repeats = 3,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time the epochs of a run against the same in a plain loop, its start-up by phase, and a cached answer."""
    from pipeline.bench.overhead import OverheadRequest, run
    from pipeline.config.compose import load_experiment, resolve_weights
    from pipeline.train.cluster import available_cpus

    config = resolve_weights(load_experiment(experiment, overrides or []).config, data_root.resolve())
    changes = tuple(part for override in overrides or () for part in ("--set", override))
    arguments = (experiment, *changes, "--data-root", str(data_root))
    threads = cpus_per_worker or available_cpus()
    request = OverheadRequest(config, arguments, data_root, places.CACHE.resolve(), threads, repeats)
    _show_bench(run(request), Console(as_json), record=record)


@bench_app.command("scaling")
def bench_scaling(
    experiment: Experiment,
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(metavar="1,2", help="Numbers of workers.")] = "1,2",
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="Of each worker, whatever their number.")] = 1,
    gpus_per_worker: GpusPerWorker = None,
    batches: Annotated[int, typer.Option(min=1, help="Global batches that are timed.")] = 8,
    address: Address = None,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    repeats: Repeats = 3,
    record: Record = False,
    as_json: Json = False,
) -> None:
    """Time a few workers under Ray Train against one, and the sum of their gradients by itself."""
    from pipeline.bench.scaling import ScalingRequest, run
    from pipeline.config.compose import load_experiment, resolve_weights

    config = resolve_weights(load_experiment(experiment, overrides or []).config, data_root.resolve())
    request = ScalingRequest(
        config=config,
        data_root=data_root,
        cache_root=places.CACHE.resolve(),
        storage=storage,
        workers=parse_worker_numbers(workers),
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        batches=batches,
        repeats=repeats,
        address=address,
    )
    _show_bench(run(request), Console(as_json), record=record)


def _show_bench(report: BenchReport, console: Console, *, record: bool) -> None:
    rows = [[one.name, f"{one.median:.4g}", f"{one.min:.4g}", f"{one.max:.4g}", one.unit] for one in report.results]
    console.table(["what", "median", "min", "max", "unit"], rows)
    for name, ratio in report.ratios.items():
        console.line(f"{name}: {ratio:.3g}")
    for note in report.notes:
        console.line(note)
    for table in report.tables:
        console.line(table.title)
        console.table(list(table.columns), [list(row) for row in table.rows])
    if record:
        from pipeline.bench.record import append

        append(report, "python -m pipeline " + " ".join(sys.argv[1:]))
    console.result(report.to_json())
