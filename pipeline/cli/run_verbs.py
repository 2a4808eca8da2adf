"""Verbs that train: `train`, `search`, `demo`; and `doctor`, which checks the machine for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mgmrn.errors import UserError
from pipeline import places
from pipeline.cli import options
from pipeline.console import Console, say, where_tracked
from pipeline.errors import ExitCode
from pipeline.storage import StoragePath
from pipeline.where import Where

if TYPE_CHECKING:
    from pipeline.launch import Outcome
    from pipeline.search.config import SearchFile
    from pipeline.search.outcome import SearchOutcome

Split = Literal["tune", "final"]

runs_app = typer.Typer()


@runs_app.command()
def train(
    experiment: options.Experiment,
    split: Annotated[Split | None, typer.Option(help="Run one split alone; by default, tune and then final.")] = None,
    overrides: options.Overrides = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="Seeds; the config's own without it.")] = None,
    workers: Annotated[str, typer.Option(metavar="N|A..B", help="Processes; a range grows and shrinks.")] = "1",
    cpus_per_worker: options.Cpus = None,
    gpus_per_worker: options.Gpus = None,
    wait_for_hosts: options.WaitForHosts = None,
    address: options.Address = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    storage: options.Storage = places.STORAGE,
    log_model: options.LogModel = "final",
    force: Annotated[bool, typer.Option("--force", help="Run finished runs again.")] = False,
    as_json: options.Json = False,
) -> int:
    """Train and evaluate an experiment; without --split the whole protocol, with nothing chosen on test images."""
    from pipeline.config.compose import load_experiment
    from pipeline.launch import TrainRequest, run_experiment
    from pipeline.train.placement import parse_workers

    composed = load_experiment(experiment, overrides or [])
    numbers = options.parse_seeds(seeds) if seeds is not None else (composed.config.seed,)
    where = Where(tracking_uri, data_root, storage, address, cpus_per_worker, gpus_per_worker, wait_for_hosts)
    request = TrainRequest(composed.name, composed, split, numbers, parse_workers(workers), where, force, log_model)
    outcome, console = run_experiment(request), Console(as_json)
    _show_runs(outcome, console)
    console.result(outcome.to_json())
    failed = outcome.status in ("failed", "stopped") or not outcome.is_tracked
    return ExitCode.SOME_FAILED if failed else ExitCode.FINE


@runs_app.command()
def search(
    name: options.Search,
    trials: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Number of trials, in place of the file's.")
    ] = None,
    concurrency: options.Concurrency = None,
    budget_hours: Annotated[float | None, typer.Option(min=0.0, help="Hours after which no new trial starts.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted search.")] = False,
    final: Annotated[bool, typer.Option("--final", help="Then run the protocol once with the best config.")] = False,
    cpus_per_worker: options.Cpus = None,
    gpus_per_worker: options.Gpus = None,
    wait_for_hosts: options.WaitForHosts = None,
    address: options.Address = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    study_storage: options.StudyStorage = places.STUDY_STORAGE,
    data_root: options.DataRoot = places.DATA_ROOT,
    storage: options.Storage = places.STORAGE,
    force: Annotated[bool, typer.Option("--force", help="Delete an earlier search of the same space.")] = False,
    as_json: options.Json = False,
) -> int:
    """Search a space for the best config, on the tune split alone, and compare the winner with the base."""
    from pipeline.search.config import load_search

    if resume and force:
        hint = "--resume goes on with the earlier search, --force deletes it"
        raise UserError("--resume and --force were both asked for", "--force", hint)
    where = Where(tracking_uri, data_root, storage, address, cpus_per_worker, gpus_per_worker, wait_for_hosts)
    file = load_search(name)
    from pipeline.search.launch import run_search
    from pipeline.search.outcome import show_outcome

    console = Console(as_json)
    outcome = run_search(
        file,
        where,
        study_storage,
        trials=trials,
        concurrency=concurrency,
        budget_hours=budget_hours,
        resume=resume,
        force=force,
    )
    show_outcome(outcome, console)
    sealed = list(_sealed(outcome, file, where)) if final else []
    for one in sealed:
        _show_runs(one, console)
    console.result(outcome.model_dump(mode="json") | ({"final": [one.to_json() for one in sealed]} if final else {}))
    failed = "failed" in {outcome.status, *(one.status for one in sealed)}
    tracked = outcome.is_tracked and all(one.is_tracked for one in sealed)
    return ExitCode.SOME_FAILED if failed or not tracked else ExitCode.FINE


def _sealed(outcome: SearchOutcome, file: SearchFile, where: Where) -> Iterator[Outcome]:
    """Outcomes of `train` with each best config: `tune` runs of its own, then one evaluation on the test images per seed."""
    from pipeline.config.compose import load_experiment
    from pipeline.launch import TrainRequest, run_experiment
    from pipeline.train.placement import Workers

    config = file.config
    seeds, workers = tuple(range(config.confirm_seeds)), Workers(config.workers, config.workers)
    for best in outcome.best_configs:
        with StoragePath(best).fetched() as config_file:
            composed = load_experiment(str(config_file))
        yield run_experiment(TrainRequest(file.name, composed, None, seeds, workers, where))


@runs_app.command()
def demo(as_json: options.Json = False) -> int:
    """Train Mg-MRN, the same without its refinement, and a one-level baseline on the embedded benchmark, and print all three."""
    from mgmrn.makers.synthetic import make_synthetic
    from pipeline.ablation.config import load_ablation
    from pipeline.ablation.grid import make_grid
    from pipeline.ablation.launch import run_ablation
    from pipeline.ablation.results import comparisons
    from pipeline.analysis.tables import as_dict, show_tables, summary_table
    from pipeline.train.placement import available_cpus

    console = Console(as_json)
    say("drawing the embedded benchmark: 40 classes of creatures, 10 of them never seen in training")
    make_synthetic(places.DATA_ROOT, workers=available_cpus())
    file = load_ablation("demo")
    outcome = run_ablation(file, Where(), mode="missing", concurrency=None, budget_hours=None)
    compared = comparisons(make_grid(file), outcome.cells)
    show_tables([summary_table(compared)], console)
    say(f"chance of T1 is 10; {where_tracked(outcome.tracking_uri, 'demo')}")
    console.result({"status": outcome.status, **as_dict(compared)})
    return ExitCode.FINE if outcome.status in ("finished", "cached") else ExitCode.SOME_FAILED


@runs_app.command()
def doctor(
    address: options.Address = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    storage: options.Storage = places.STORAGE,
    as_json: options.Json = False,
) -> int:
    """Check this machine and the places of a run: one table, with a remedy for every finding.

    Exit code 2 when an option is wrong, 3 when this machine cannot run; warnings leave it at 0.
    """
    from dataclasses import asdict

    from pipeline.doctor import examine

    console = Console(as_json)
    lines = list(examine(Where(tracking_uri, data_root, storage, address)))
    console.table(["", "check", "found", "remedy"], [[one.state, one.check, one.found, one.remedy] for one in lines])
    counts = {state: sum(one.state == state for one in lines) for state in ("ok", "warn", "bad")}
    console.line(", ".join(f"{count} {state}" for state, count in counts.items()))
    console.result({"lines": [asdict(one) for one in lines], "counts": counts})
    return max(one.code for one in lines)


def _show_runs(outcome: Outcome, console: Console) -> None:
    """Print a launch's runs as a table; figures of `tune` are on validation images, those of `final` on test images."""
    from pipeline.analysis.runs import FIGURES, prefix_of

    rows = []
    for run in outcome.runs:
        figures = [run.metrics.get(f"{prefix_of(run.split)}{figure}") for figure in FIGURES]
        shown = ["–" if figure is None else f"{figure:.3f}" for figure in (*figures, run.gamma)]
        rows.append([run.name, run.split, str(run.seed), run.status, *shown])
    symbols = ["H* (oracle)" if symbol == "H*" else symbol for symbol in FIGURES.values()]
    console.table(["run", "split", "seed", "status", *symbols, "γ"], rows)
    if outcome.is_tracked and outcome.runs:
        console.line(where_tracked(outcome.tracking_uri, outcome.runs[-1].run_id))
