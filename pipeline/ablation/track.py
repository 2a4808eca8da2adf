"""What a grid leaves in the tracking store besides its runs: links to runs of other launches, aggregates, tables."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.ablation.plan import PlannedCell
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import FIGURES, prefix_of, records_of
from pipeline.analysis.tables import as_csv, as_dict, markdown, overview_table
from pipeline.tracking.store import TrackedRun, TrackingStore

PARENT_KIND = "ablation"
LINK_KIND = "link"
SCORED = "grid/scored"
"""Metric of the parent: cells with a score; each launch adds a step to it."""
NOTE_TAG, NOTE_LIMIT = "mlflow.note.content", 6000
"""What MLflow's UI shows as a run's description, as Markdown; and characters of it that every store takes."""
COPIED = ("variant", "benchmark", "seed", "split", "config_hash", "group_hash", "data_digest")
"""Tags of a run that its links carry too."""


def log_grid(
    store: TrackingStore, parent_run_id: str, cells: Sequence[PlannedCell], compared: Sequence[Comparison]
) -> None:
    """Completes the parent: a link for each run that stands below another one, the figures, the tables, a description with the benchmarks
    side by side.

    Raises:
        TrackingError: when the store is away.
    """
    _link(store, parent_run_id, cells)
    # A later launch of the same grid adds a step, and the figures of the last step count.
    step = max(store.logged_steps(parent_run_id, SCORED), default=-1) + 1
    scored = float(sum(cell.evaluated is not None for cell in cells))
    store.log_metrics(parent_run_id, step, {SCORED: scored, **aggregates(compared)}, int(time.time() * 1000))
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


def aggregates(compared: Sequence[Comparison]) -> dict[str, float]:
    """`benchmark/variant/metric/mean|std|n|difference|low|high|p_holm` of everything that is known."""
    columns = ("mean", "std", "n", "difference", "low", "high", "p_holm")
    return {
        f"{row['benchmark']}/{row['variant']}/{comparison.metric}/{column}": float(row[column])
        for comparison in compared
        for row in records_of(comparison.entries)
        for column in columns
        if row["n"] and row[column] is not None
    }


def _link(store: TrackingStore, parent_run_id: str, cells: Sequence[PlannedCell]) -> None:
    """A run has one parent and one name; for others it is linked, so that each grid is whole in the store's own tables."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.`mgmrn.kind` = '{LINK_KIND}'"
    # One that is not finished was left by a driver that died over it.
    finished = store.own_runs(f"{wanted} and attributes.status = 'FINISHED'")
    linked = {(run.tags["mgmrn.linked_run_id"], run.tags["mgmrn.variant"]) for run in finished}
    for planned in cells:
        run = planned.evaluated
        if run is None or (run.run_id, planned.cell.variant) in linked:
            continue
        # Two variants may be one config on some benchmark, which is run under the first one's name.
        if run.parent_run_id == parent_run_id and run.tags["mgmrn.variant"] == planned.cell.variant:
            continue
        link = store.create_link(parent_run_id, run.name, _tags(run, planned))
        metrics, prefix = json.loads(run.tags["mgmrn.result"])["metrics"], prefix_of(run.tags["mgmrn.split"])
        figures = {prefix + key: metrics[prefix + key] for key in FIGURES if prefix + key in metrics}
        store.log_metrics(link, 0, figures, int(time.time() * 1000))
        store.finish(link, "FINISHED", "linked")
        linked.add((run.run_id, planned.cell.variant))


def _tags(run: TrackedRun, planned: PlannedCell) -> Mapping[str, str]:
    copied = {f"mgmrn.{tag}": run.tags[f"mgmrn.{tag}"] for tag in COPIED if f"mgmrn.{tag}" in run.tags}
    # The same run may be called otherwise in another grid.
    own = {"mgmrn.kind": LINK_KIND, "mgmrn.variant": planned.cell.variant, "mgmrn.linked_run_id": run.run_id}
    return copied | own
