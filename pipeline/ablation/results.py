"""Results: comparisons of a grid's variants or of single runs, and what a grid's parent run holds."""

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mgmrn.errors import UserError
from pipeline.ablation.config import AblationFile
from pipeline.ablation.grid import Grid, GridCell
from pipeline.ablation.plan import PlannedCell, survey
from pipeline.analysis.comparison import CELL_COLUMNS, Comparison, cells_of_runs, compare, figures_of
from pipeline.analysis.runs import FIGURES, SYMBOLS, prefix_of, records_of, rows_of, runs_table
from pipeline.analysis.tables import as_csv, as_dict, detail_table, markdown, overview_table
from pipeline.spool import PARENT_TAG, NewRun
from pipeline.tracking.environment import origin_tags
from pipeline.tracking.store import NOTE_LIMIT, NOTE_TAG, TrackingStore
from pipeline.train.cell import datasets_of
from pipeline.where import Where

LINK_KIND = "link"
"""`mgmrn.kind` of a run that stands for a run below another parent."""
SCORED = "grid/scored"
"""Metric of the parent: number of cells with a score; each launch adds a step."""
VARIANT_KIND = "variant"
"""`mgmrn.kind` of a run that holds the figures of a variant over its seeds."""
BESIDE_MEANS = ("std", "difference", "low", "high", "p_holm")
COPIED = ("variant", "benchmark", "seed", "split", "config_hash", "group_hash", "data_digest")


def comparisons(grid: Grid, cells: Sequence[PlannedCell], metric: str | None = None) -> list[Comparison]:
    """Compare planned cells by one metric, or by all of them with the grid's primary one first."""
    primary = grid.file.config.primary
    split = grid.file.config.scored_split
    table = _cells_table(cells, split)
    metrics = [metric] if metric else sorted(FIGURES, key=lambda key: key != primary)
    return [compare(table, grid.base.name, key, split) for key in metrics]


def _cells_table(cells: Sequence[PlannedCell], split: str) -> pd.DataFrame:
    """One row per planned cell, as `compare` takes them; the times are those of the `tune` and `final` runs together."""
    rows = []
    for one in cells:
        runs = {run.run_id: run for run in (one.tune, one.evaluated) if run and one.evaluated}.values()
        rows.append(
            {
                "benchmark": one.cell.benchmark,
                "variant": one.cell.variant,
                "seed": one.cell.seed,
                "state": one.state,
                "reason": one.reason,
                "run_id": one.evaluated.run_id if one.evaluated else "",
                "experiment_id": one.evaluated.experiment_id if one.evaluated else "",
                "seconds": sum(math.nan if run.seconds is None else run.seconds for run in runs) if runs else None,
                "gpu_seconds": sum(run.gpu_seconds for run in runs) if runs else None,
            }
        )
    table = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype({"seconds": float, "gpu_seconds": float})
    evaluated = runs_table(one.evaluated for one in cells if one.evaluated).drop_duplicates("run_id")
    figures = figures_of(evaluated, split).set_index("run_id")[list(SYMBOLS)].astype(float)
    return table.join(figures, on="run_id")


def compare_grid(file: AblationFile, where: Where, metric: str | None) -> list[Comparison]:
    """Compare the variants of a grid by the runs that exist; by all figures without a metric, the primary one first."""
    _check_metric(metric)
    surveyed = survey(file, where, TrackingStore.open)
    return comparisons(surveyed.grid, surveyed.plan(), metric)


def compare_runs(run_ids: Sequence[str], base: str | None, metric: str | None, tracking_uri: str) -> list[Comparison]:
    """Compare finished runs of one split, grouped by variant and benchmark; the first run's variant is the default base.

    Raises `UserError` for a run that is no finished training run, two splits, two runs of one config and seed, an unknown metric or base.
    """
    _check_metric(metric)
    store = TrackingStore.open(tracking_uri)
    found = [store.get(run_id) for run_id in run_ids]
    for run in found:
        run.check_finished_training()
    runs = runs_table(found)
    split, *others = runs["split"].unique()
    if others:
        hint = "name runs of one split: their figures are of different images"
        raise UserError("some runs are scored on validation images and some on test images", "RUN", hint)
    cells = cells_of_runs(_with_distinct_names(runs), split)
    base = base or cells["variant"].iloc[0]
    if not (cells["variant"] == base).any():
        names = ", ".join(cells["variant"].unique())
        raise UserError(f"no run is of the variant '{base}'", "--base", f"name one of {names}")
    cells = cells.sort_values("variant", key=lambda names: names != base, kind="stable")
    return [compare(cells, base, key, split) for key in ([metric] if metric else FIGURES)]


def _with_distinct_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with the config's hash added to variant names that several configs of one benchmark share."""
    configs = runs.groupby(["variant", "benchmark"])["group_hash"].nunique()
    shared = runs["variant"].isin(configs[configs > 1].index.get_level_values("variant"))
    runs = runs.assign(variant=runs["variant"].mask(shared, runs["variant"] + "." + runs["group_hash"].str[:8]))
    place = ["variant", "benchmark", "seed"]
    for _, same in runs[runs.duplicated(place, keep=False)].groupby(place, sort=False):
        first, second, *_ = rows_of(same)
        what = f"{first.variant} on {first.benchmark} with seed {first.seed}"
        raise UserError(f"{first.run_id} and {second.run_id} are both of {what}", "RUN", "name one of them")
    return runs


def _check_metric(metric: str | None) -> None:
    if metric is not None and metric not in SYMBOLS:
        raise UserError(f"'{metric}' is no figure", "--metric", f"name one of {', '.join(SYMBOLS)}")


def log_grid(
    store: TrackingStore, parent_run_id: str, cells: Sequence[PlannedCell], compared: Sequence[Comparison]
) -> None:
    """Complete the parent: links, a run per variant and benchmark, tables, and a description with the benchmarks side by side."""
    _link(store, parent_run_id, cells)
    # A later launch of the same grid adds a step; MLflow shows the figures of the last step.
    step = max(store.logged_steps(parent_run_id, SCORED), default=-1) + 1
    scored = float(sum(cell.evaluated is not None for cell in cells))
    store.log_metrics(parent_run_id, step, {SCORED: scored}, int(time.time() * 1000))
    _log_variants(store, parent_run_id, cells, compared, step)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "comparison.csv").write_text(as_csv(compared), encoding="utf-8")
        (Path(folder) / "comparison.json").write_text(json.dumps(as_dict(compared), indent=1), encoding="utf-8")
        store.log_artifacts(parent_run_id, Path(folder))
    store.set_tags(parent_run_id, {NOTE_TAG: description(compared)})


def description(compared: Sequence[Comparison]) -> str:
    """Variants × benchmarks as Markdown: the primary figure first, and as many others as there is room for."""
    text = ""
    for comparison in compared:
        table = markdown(overview_table(comparison))
        if len(text) + len(table) > NOTE_LIMIT:
            return text + "\nMore in the artifact comparison.csv.\n"
        text += table + "\n"
    return text


def _log_variants(
    store: TrackingStore, parent_run_id: str, cells: Sequence[PlannedCell], compared: Sequence[Comparison], step: int
) -> None:
    """Log each variant's figures over the seeds to a run of its own, so that MLflow's table and charts compare variants."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.`mgmrn.kind` = '{VARIANT_KIND}'"
    known = {run.name: run.run_id for run in store.own_runs(wanted)}
    own = {"mgmrn.kind": VARIANT_KIND, PARENT_TAG: parent_run_id, **origin_tags()}
    one_of = {(one.cell.variant, one.cell.benchmark): one.cell for one in cells}
    rows = {(row["variant"], row["benchmark"]): row for row in detail_table(compared[0]).cells.to_dict("records")}
    for (variant, benchmark), figures in _figures_of_variants(compared).items():
        names = {"variant": variant, "benchmark": benchmark, "split": compared[0].split}
        cell, row = one_of[variant, benchmark], rows[variant, benchmark]
        tags = own | {f"mgmrn.{key}": name for key, name in names.items()}
        new = NewRun(f"{benchmark.lower()}.{variant}", tags, names, datasets_of(cell.data[-1:]))
        run_id = known.get(new.name) or store.create_parent(new.name, tags)
        store.describe_run(run_id, new)
        store.set_tags(run_id, {NOTE_TAG: _note(cell, row, compared[0])})
        store.log_metrics(run_id, step, figures, int(time.time() * 1000))
        store.finish(run_id, "FINISHED", "logged")


def _note(cell: GridCell, row: Mapping[Any, str], compared: Comparison) -> str:
    """Description of a variant in Markdown: its row of the comparison, and its config."""
    assert cell.tune is not None
    parts = [f"**{FIGURES[compared.metric]} {row['mean ± std']} %** on `{compared.split}`, {row['n']} seeds"]
    if cell.variant != compared.base:
        certain = f"95 % interval {row['95 % interval']}, p {row['p (Holm)']}"
        parts.append(f"{row['difference']} points against {compared.base} ({certain}): {row['verdict']}")
    return "\n\n".join([*parts, cell.tune.composed.summary])


def _figures_of_variants(compared: Sequence[Comparison]) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics of each variant and benchmark: means under the names of the runs' figures, `std/FIGURE`, … beside them, and `seeds`."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for comparison in compared:
        for row in records_of(comparison.entries):
            if row["n"]:
                metrics = found.setdefault((row["variant"], row["benchmark"]), {"seeds": float(row["n"])})
                metrics[prefix_of(comparison.split) + comparison.metric] = row["mean"]
                known = [name for name in BESIDE_MEANS if row[name] is not None]
                metrics |= {f"{name}/{comparison.metric}": float(row[name]) for name in known}
    return found


def _link(store: TrackingStore, parent_run_id: str, cells: Sequence[PlannedCell]) -> None:
    """Link every run that has another parent or name than in this grid, so that the grid is whole in MLflow's tables."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.`mgmrn.kind` = '{LINK_KIND}'"
    # A link that is not finished was left by a driver that died.
    finished = store.own_runs(f"{wanted} and attributes.status = 'FINISHED'")
    linked = {(run.tags["mgmrn.linked_run_id"], run.tags["mgmrn.variant"]) for run in finished}
    for planned in cells:
        run, variant = planned.evaluated, planned.cell.variant
        if run is None or (run.run_id, variant) in linked:
            continue
        # Two variants may be one config on some benchmark, which is run under the name of the first.
        if run.parent_run_id == parent_run_id and run.tags["mgmrn.variant"] == variant:
            continue
        copied = (NOTE_TAG, *(f"mgmrn.{tag}" for tag in COPIED))
        tags = {tag: run.tags[tag] for tag in copied if tag in run.tags}
        tags |= {"mgmrn.kind": LINK_KIND, "mgmrn.variant": variant, "mgmrn.linked_run_id": run.run_id}
        link = store.create_parent(run.name, tags | {PARENT_TAG: parent_run_id})
        store.describe_run(link, NewRun(run.name, {}, datasets=datasets_of(planned.cell.data[-1:])))
        metrics, prefix = json.loads(run.tags["mgmrn.result"])["metrics"], prefix_of(run.tags["mgmrn.split"])
        figures = {prefix + key: metrics[prefix + key] for key in FIGURES if prefix + key in metrics}
        store.log_metrics(link, 0, figures, int(time.time() * 1000))
        store.finish(link, "FINISHED", "linked")
        linked.add((run.run_id, variant))
