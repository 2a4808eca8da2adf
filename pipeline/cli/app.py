"""The command line: every verb parses, calls one function, prints. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.cli import completion
from pipeline.cli.ablation_verbs import ablation_app
from pipeline.cli.data_verbs import data_app
from pipeline.cli.job_verbs import jobs_app
from pipeline.cli.model_verbs import models_app
from pipeline.cli.options import (
    APP_OPTIONS,
    Address,
    DataRoot,
    Experiment,
    GpusPerWorker,
    Json,
    Overrides,
    Storage,
    StudyStorage,
    TrackingUri,
    WorkerRange,
    parse_seeds,
)
from pipeline.console import Console
from pipeline.errors import ExitCode, Expected, TrackingError, error_object, exit_code
from pipeline.interruption import Interruption, raised_signals
from pipeline.where import Where

if TYPE_CHECKING:
    from pipeline.search.request import SearchRequest
    from pipeline.train.request import Outcome, RunSummary

TRACEBACK_VARIABLE = "MGMRN_TRACEBACK"

# Click's UsageError, which typer raises but does not export.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)

app = typer.Typer(help="Zero-shot learning experiments with Mg-MRN.", **APP_OPTIONS)
config_app = typer.Typer(help="Look at configs without running them.", **APP_OPTIONS)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
app.add_typer(ablation_app)
app.add_typer(models_app)
app.add_typer(jobs_app)


def main(arguments: Sequence[str]) -> int:
    """Runs a command and answers with its exit code; a user's mistake is answered with one sentence."""
    console = Console("--json" in arguments)
    completion.prepare()
    try:
        with raised_signals():
            answer = app(
                args=list(arguments),
                prog_name="python -m pipeline",
                standalone_mode=False,
                complete_var=completion.VARIABLE,
            )
        return int(answer or ExitCode.FINE)
    except _UsageError as error:
        return _usage_error(error, console)
    except (UserError, ResourceError, TrackingError) as error:
        return _expected_error(error, console)
    except Interruption as interruption:
        by = "" if interruption.signal == signal.SIGINT else f" by {interruption.signal.name}"
        console.err.write(f"interrupted{by}; the same command goes on from the last checkpoint\n")
        return interruption.exit_code


def _usage_error(error: Any, console: Console) -> int:
    """Answers what Typer finds wrong with the words of a command; a group without a verb is answered with the list of its verbs."""
    text = error.format_message()
    if error.ctx is not None and text == error.ctx.get_help():
        console.err.write(f"{text}\n")
        console.result({"error": "a verb is missing", "where": error.ctx.command_path, "hint": "see --help"})
        return ExitCode.BAD_INPUT
    hint = f"see {error.ctx.command_path} --help" if error.ctx else ""
    return _expected_error(UserError(" ".join(text.split()).rstrip("."), hint=hint), console)


def _expected_error(error: Expected, console: Console) -> int:
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        import traceback

        console.err.write("".join(traceback.format_exception(error)))
    console.err.write(f"error: {error}\n")
    console.result(error_object(error))
    return exit_code(error)


@app.command()
def train(
    experiment: Experiment,
    split: Annotated[
        Literal["tune", "final"] | None, typer.Option(help="Run one split alone; without it, tune and then final.")
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="Seeds; the config's own without it.")] = None,
    workers: WorkerRange = "1",
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Without it, the workers share the CPUs evenly.")
    ] = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished.")] = False,
    as_json: Json = False,
) -> int:
    """Train and evaluate an experiment; without --split the whole protocol, with nothing chosen on test images."""
    from pipeline.config.compose import load_experiment
    from pipeline.train.placement import parse_workers
    from pipeline.train.request import TrainRequest

    composed = load_experiment(experiment, overrides or [])
    request = TrainRequest(
        experiment=composed.name,
        composed=composed,
        split=split,
        seeds=parse_seeds(seeds) if seeds is not None else (composed.config.seed,),
        workers=parse_workers(workers),
        where=Where(tracking_uri, data_root, storage, address, cpus_per_worker, gpus_per_worker),
        force=force,
    )
    from pipeline.train.launch import run_experiment

    return _report(run_experiment(request), Console(as_json))


@app.command()
def search(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SEARCH",
            help="Name of a shipped search, or path of a YAML file.",
            autocompletion=completion.shipped("search"),
        ),
    ],
    trials: Annotated[int | None, typer.Option(min=1, help="Without it, as many as the file says.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Trials at once; without it, as many as there is room for.")
    ] = None,
    budget_hours: Annotated[
        float | None, typer.Option(min=0.0, help="Hours after which no new trial starts; those that run are finished.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was cut off.")] = False,
    final: Annotated[
        bool, typer.Option("--final", help="Then run the sealed protocol once with the best config.")
    ] = False,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Without it, the trials share the CPUs evenly.")
    ] = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    study_storage: StudyStorage = places.STUDY_STORAGE,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    force: Annotated[bool, typer.Option("--force", help="Forget an earlier search of the same space.")] = False,
    as_json: Json = False,
) -> int:
    """Search a space for the best config, on the tune split alone, and compare the winner with the base."""
    from pipeline.search.config import load_search
    from pipeline.search.request import SearchRequest

    if resume and force:
        hint = "--resume goes on with the earlier search, --force forgets it"
        raise UserError("--resume and --force were both asked for", "--force", hint)
    request = SearchRequest(
        search=load_search(name),
        trials=trials,
        concurrency=concurrency,
        budget_hours=budget_hours,
        resume=resume,
        study_storage=study_storage,
        where=Where(tracking_uri, data_root, storage, address, cpus_per_worker, gpus_per_worker),
        force=force,
    )
    from pipeline.search.launch import run_search
    from pipeline.search.show import show_outcome

    console = Console(as_json)
    outcome = run_search(request)
    show_outcome(outcome, console)
    sealed = _sealed(outcome.best_configs, request) if final else []
    for one in sealed:
        _show_runs(one, console)
    console.result(outcome.to_json() | ({"final": [one.to_json() for one in sealed]} if final else {}))
    failed = "failed" in {outcome.status, *(one.status for one in sealed)}
    tracked = outcome.is_tracked and all(one.is_tracked for one in sealed)
    return ExitCode.SOME_FAILED if failed or not tracked else ExitCode.FINE


def _sealed(configs: Sequence[str], request: SearchRequest) -> list[Outcome]:
    """The protocol of `train` on each best config: its own tune runs, then one evaluation on the test images per seed."""
    from pipeline.config.compose import load_experiment
    from pipeline.train.launch import run_experiment
    from pipeline.train.placement import Workers
    from pipeline.train.request import TrainRequest

    workers = Workers(request.search.config.workers, request.search.config.workers)
    requests = [
        TrainRequest(
            experiment=request.search.name,
            composed=load_experiment(config),
            split=None,
            seeds=tuple(range(request.search.config.confirm_seeds)),
            workers=workers,
            where=request.where,
        )
        for config in configs
    ]
    return [run_experiment(one) for one in requests]


@app.command()
def demo(as_json: Json = False) -> int:
    """Train Mg-MRN and a one-level baseline on the embedded benchmark and print both."""
    from pipeline.cli.demo import run_demo

    return _report(run_demo(), Console(as_json))


@app.command()
def doctor(
    address: Address = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    as_json: Json = False,
) -> int:
    """Look at this machine and at what a run would use: one table, with a remedy for whatever is not as it should be.

    Exit code 2 when something that was named is wrong, 3 when this machine cannot run; warnings leave it at 0.
    """
    from dataclasses import asdict

    from pipeline.doctor import examine, worst

    console = Console(as_json)
    lines = list(examine(Where(tracking_uri, data_root, storage, address)))
    console.table(["", "check", "found", "remedy"], [[one.state, one.check, one.found, one.remedy] for one in lines])
    states = [one.state for one in lines]
    counts = {state: states.count(state) for state in ("ok", "warn", "bad")}
    console.line(", ".join(f"{count} {state}" for state, count in counts.items()))
    console.result({"lines": [asdict(one) for one in lines], "counts": counts})
    return worst(lines)


@app.command("completion")
def complete(
    shell: Annotated[completion.Shell, typer.Argument(help="Shell that runs what is printed.")],
) -> None:
    """Print what a shell has to run to know and complete `mgmrn`, which is `python -m pipeline`: eval "$(… completion bash)"."""
    Console().line(completion.script(shell).rstrip())


@config_app.command()
def show(experiment: Experiment, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the full config and where every value was written."""
    from pipeline.config.compose import load_experiment
    from pipeline.config.compose import show as show_config

    composed = load_experiment(experiment, overrides or [])
    console = Console(as_json)
    if not as_json:
        console.line(show_config(composed).rstrip())
    console.result(
        {
            "name": composed.name,
            "config": composed.config.model_dump(mode="json"),
            "provenance": dict(composed.provenance),
        }
    )


@config_app.command()
def validate(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments, searches as search/NAME, ablations as ablation/NAME, or files of experiments; without any, all."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check configs and report all errors of all of them."""
    from pipeline.ablation.config import load_ablation
    from pipeline.ablation.grid import make_grid
    from pipeline.config.compose import load_experiment
    from pipeline.config.files import config_names
    from pipeline.search.config import load_search
    from pipeline.search.space import Space

    console = Console(as_json)
    errors = {}
    groups = ("search", "ablation")
    shipped = [*config_names("experiment"), *(f"{group}/{name}" for group in groups for name in config_names(group))]
    for name in names or shipped:
        try:
            if name.startswith("search/"):
                Space(load_search(name.removeprefix("search/")))
            elif name.startswith("ablation/"):
                make_grid(load_ablation(name))
            else:
                load_experiment(name)
            console.line(f"{name}: fine")
        except UserError as error:
            errors[name] = error
            console.line(f"{name}: {error}")
    console.result({"errors": {name: error_object(error) for name, error in errors.items()}})
    return ExitCode.BAD_INPUT if errors else ExitCode.FINE


@config_app.command("diff")
def diff_configs(before: Experiment, after: Experiment, as_json: Json = False) -> None:
    """Print the values in which two experiments differ."""
    from dataclasses import asdict

    from pipeline.config.compose import diff, load_experiment
    from pipeline.config.yaml_tree import yaml_value

    changes = diff(load_experiment(before).config, load_experiment(after).config)
    console = Console(as_json)
    rows = [[one.path, yaml_value(one.before), yaml_value(one.after)] for one in changes]
    console.table(["field", before, after], rows)
    console.result({"changes": [asdict(one) for one in changes]})


_COLUMNS: dict[str, Callable[[RunSummary], float | None]] = {
    "T1": lambda run: run.metrics.get(f"{_prefix(run)}zsl_t1"),
    "U": lambda run: run.metrics.get(f"{_prefix(run)}gzsl_u"),
    "S": lambda run: run.metrics.get(f"{_prefix(run)}gzsl_s"),
    "H": lambda run: run.metrics.get(f"{_prefix(run)}gzsl_h"),
    "H* (oracle)": lambda run: run.metrics.get(f"{_prefix(run)}gzsl_h_oracle"),
    "AUSUC": lambda run: run.metrics.get(f"{_prefix(run)}ausuc"),
    "γ": lambda run: run.gamma,
}


def _prefix(run: RunSummary) -> str:
    from pipeline.analysis.runs import prefix_of

    return prefix_of(run.split)


def _report(outcome: Outcome, console: Console) -> int:
    """Prints a launch and answers with its exit code."""
    _show_runs(outcome, console)
    console.result(outcome.to_json())
    failed = outcome.status in ("failed", "stopped") or not outcome.is_tracked
    return ExitCode.SOME_FAILED if failed else ExitCode.FINE


def _show_runs(outcome: Outcome, console: Console) -> None:
    """A launch's runs as a table; figures of `tune` are on validation images, those of `final` on test images."""
    rows = [
        [run.name, run.split, str(run.seed), run.status, *(_figure(column(run)) for column in _COLUMNS.values())]
        for run in outcome.runs
    ]
    console.table(["run", "split", "seed", "status", *_COLUMNS], rows)
    launch = f", run {outcome.parent_run_id}" if outcome.parent_run_id else ""
    if outcome.is_tracked:
        console.line(f"tracked in {outcome.tracking_uri}{launch}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
