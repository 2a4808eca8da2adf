"""The verbs of ablation grids: `plan`, `ablate`, `compare`, `report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mgmrn.errors import UserError
from pipeline import places
from pipeline.cli import options
from pipeline.console import Console, duration, option, where_tracked
from pipeline.errors import ExitCode
from pipeline.where import Where

if TYPE_CHECKING:
    from pipeline.ablation.config import AblationFile
    from pipeline.ablation.plan import PlannedCell
    from pipeline.trials.known import Cost

ablation_app = typer.Typer()

Benchmarks = Annotated[str | None, typer.Option(metavar="cub,sun", help="Benchmarks in place of the file's.")]
Mode = Literal["missing", "retry", "force"]


@ablation_app.command()
def plan(
    name: options.Ablation,
    benchmarks: Benchmarks = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Runs at once, for the time in all.")] = 1,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    as_json: options.Json = False,
) -> None:
    """Show every cell of a grid, its state, and the predicted cost of the rest. Nothing runs."""
    from pipeline.ablation.plan import TO_RUN, plan_to_json, planned, proposed_part

    file, console = load_grid_file(name, benchmarks), Console(as_json)
    cells = planned(file, Where(tracking_uri, data_root))
    show_plan(cells, console, concurrency)
    if file.config.workers == 1 and (proposal := proposed_part(one for one in cells if one.state in TO_RUN)):
        console.line(proposal)
    console.result(plan_to_json(cells))


@ablation_app.command()
def ablate(
    name: options.Ablation,
    mode: Annotated[Mode, typer.Option(help="Run new cells; failed and stale ones too; all again.")] = "missing",
    benchmarks: Benchmarks = None,
    concurrency: options.Concurrency = None,
    budget_hours: Annotated[float | None, typer.Option(min=0.0, help="Hours; a longer plan is refused.")] = None,
    cpus_per_worker: options.Cpus = None,
    gpus_per_worker: options.Gpus = None,
    wait_for_hosts: options.WaitForHosts = None,
    address: options.Address = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    storage: options.Storage = places.STORAGE,
    log_model: options.LogModel = "final",
    as_json: options.Json = False,
) -> int:
    """Run the missing cells of a grid and compare its variants."""
    from pipeline.ablation.launch import run_ablation
    from pipeline.ablation.plan import plan_to_json, totals
    from pipeline.analysis.tables import as_dict, show_tables, tables

    where = Where(tracking_uri, data_root, storage, address, cpus_per_worker, gpus_per_worker, wait_for_hosts)
    file, console = load_grid_file(name, benchmarks), Console(as_json)
    outcome = run_ablation(
        file, where, mode=mode, concurrency=concurrency, budget_hours=budget_hours, log_model=log_model
    )
    show_tables(tables([outcome.comparison]), console)
    counts = ", ".join(f"{count} {state}" for state, count in totals(outcome.cells).items())
    console.line(f"{outcome.launched} cells launched; now {counts}")
    console.line(where_tracked(outcome.tracking_uri, file.name))
    console.result(
        {
            "status": outcome.status,
            "launched": outcome.launched,
            **plan_to_json(outcome.cells),
            "comparison": as_dict([outcome.comparison]),
            "parent_run_id": outcome.parent_run_id,
            "tracking_uri": outcome.tracking_uri,
        }
    )
    failed = any(cell.state == "failed" for cell in outcome.cells)
    return ExitCode.SOME_FAILED if failed or outcome.status in ("failed", "stopped") else ExitCode.FINE


@ablation_app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME|RUN…", help="One ablation, or ids of finished runs.")],
    metric: Annotated[str | None, typer.Option(help="Figure to compare by, like gzsl_h; by default, all.")] = None,
    base: Annotated[str | None, typer.Option(help="Base variant among runs; by default, the first run's.")] = None,
    benchmarks: Benchmarks = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    details: Annotated[bool, typer.Option("--details", help="Print the differences of every figure.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a table for programs, with fractions.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print tables for a paper.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables for a web page.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare the variants of a grid, or single runs: mean ± std over seeds, differences paired by seed."""
    from pipeline.ablation.results import compare_grid, compare_runs
    from pipeline.analysis.tables import as_csv, as_dict, as_latex, published_on, short_tables, show_tables, tables
    from pipeline.analysis.tables import markdown as as_markdown

    formats = {"--csv": csv, "--latex": latex, "--markdown": markdown}
    asked = [name for name, given in formats.items() if given]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} were asked for", asked[1], "ask for one of them")
    if _name_runs(names):
        _refuse("--benchmarks", benchmarks, "runs know their benchmarks")
        compared = compare_runs(names, base, metric, tracking_uri)
    else:
        _refuse("--base", base, "a grid has its base")
        compared = compare_grid(load_grid_file(names[0], benchmarks), Where(tracking_uri, data_root), metric)
    console = Console(as_json)
    published = published_on(compared[0].benchmarks)
    if csv:
        console.line(as_csv(compared).rstrip())
    elif latex:
        console.line(as_latex(compared, published).rstrip())
    elif markdown:
        console.line("\n".join(map(as_markdown, tables(compared, published))).rstrip())
    else:
        show_tables((tables if details else short_tables)(compared, published), console)
    console.result(as_dict(compared, published))


@ablation_app.command()
def report(
    name: options.Ablation,
    out: Annotated[Path | None, typer.Option(help="The page; without it .mgmrn/reports/NAME-HASH.html.")] = None,
    ui: Annotated[str | None, typer.Option(metavar="URL", help="MLflow UI that run ids link to.")] = None,
    benchmarks: Benchmarks = None,
    tracking_uri: options.TrackingUri = places.TRACKING_URI,
    data_root: options.DataRoot = places.DATA_ROOT,
    as_json: options.Json = False,
) -> None:
    """Write one self-contained HTML page of a grid, and log it to the grid's run."""
    from pipeline.ablation.report import make_report

    file = load_grid_file(name, benchmarks)
    words = [name, *(("--benchmarks", benchmarks) if benchmarks else ())]
    words += option("--tracking-uri", tracking_uri, places.TRACKING_URI, "MLFLOW_TRACKING_URI")
    words += option("--data-root", data_root, places.DATA_ROOT, "MGMRN_DATA_ROOT")
    content, path, parent = make_report(file, Where(tracking_uri, data_root), out, ui, words)
    console = Console(as_json)
    logged = f", and an artifact of run {parent}" if parent else ""
    console.line(f"the page is {path}{logged}")
    console.result({"report": str(path), "parent_run_id": parent, "runs": content.run_ids})


def show_plan(cells: Sequence[PlannedCell], console: Console, concurrency: int) -> None:
    """Print every cell, and the predicted cost of the cells that remain."""
    from pipeline.ablation.plan import TO_RUN, total_cost, totals

    rows = []
    for one in cells:
        cell, predicted = one.cell, _cost(one.cost) if one.state in TO_RUN else "–"
        run_id = one.evaluated.run_id if one.evaluated else "–"
        rows.append([cell.benchmark, cell.variant, str(cell.seed), one.state, predicted, run_id, one.reason])
    console.table(["benchmark", "variant", "seed", "state", "predicted", "run", "reason"], rows)
    counts = ", ".join(f"{count} {state}" for state, count in totals(cells).items())
    left = [one for one in cells if one.state in TO_RUN]
    cost = total_cost(left)
    rest = "an unknown time"
    if cost:
        cost = replace(cost, seconds=cost.seconds / concurrency)
        rest = f"{_cost(cost)}, {'one run' if concurrency == 1 else f'{concurrency} runs'} at a time"
    console.line(f"{len(cells)} cells: {counts}" + (f"; the rest would take {rest}" if left else ""))


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "unknown"
    gpu = f", {cost.gpu_seconds / 3600:.2f} GPU hours" if cost.gpu_seconds else ""
    return f"{duration(cost.seconds)}{gpu}"


def _name_runs(names: Sequence[str]) -> bool:
    """Whether the names are ids of runs (32 hex digits) and not the name of one grid."""
    runs = [len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names]
    if not all(runs) and len(names) > 1:
        raise UserError(f"cannot compare {', '.join(names)}", "NAME|RUN…", "name one ablation, or ids of runs alone")
    return all(runs)


def _refuse(option: str, value: str | None, why: str) -> None:
    if value is not None:
        raise UserError(f"{option} has no meaning here: {why}", option, "leave it out")


def load_grid_file(name: str, benchmarks: str | None) -> AblationFile:
    """Load an ablation, with the value of `--benchmarks` in place of its benchmarks."""
    from pipeline.ablation.config import load_ablation, with_benchmarks

    file = load_ablation(name)
    return file if benchmarks is None else with_benchmarks(file, tuple(benchmarks.split(",")))
