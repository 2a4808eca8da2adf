"""Plans and outcomes of grids as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.ablation.plan import PlannedCell, total_cost
from pipeline.ablation.request import TO_RUN, AblationOutcome, plan_to_json, to_be_run, totals
from pipeline.analysis.export import as_dict
from pipeline.analysis.render import tables
from pipeline.analysis.table import Table
from pipeline.console import Console, duration
from pipeline.trials.known import Cost


def show_plan(cells: Sequence[PlannedCell], console: Console) -> None:
    """Every cell, and what is left to be run."""
    rows = [
        [
            one.cell.benchmark,
            one.cell.variant,
            str(one.cell.seed),
            one.state,
            _cost(one.cost) if one.state in TO_RUN else "–",
            one.evaluated.run_id if one.evaluated else "–",
            one.reason,
        ]
        for one in cells
    ]
    console.table(["benchmark", "variant", "seed", "state", "predicted", "run", "reason"], rows)
    counts = ", ".join(f"{count} {state}" for state, count in totals(cells).items())
    left = to_be_run(cells)
    cost = total_cost(left)
    rest = f"{_cost(cost)}, one run at a time" if cost else "an unknown time"
    console.line(f"{len(cells)} cells: {counts}" + (f"; the rest would take {rest}" if left else ""))


def show_outcome(outcome: AblationOutcome, console: Console) -> None:
    """What was launched, and the variants side by side."""
    show_tables(tables([outcome.comparison]), console)
    counts = ", ".join(f"{count} {state}" for state, count in outcome.totals.items())
    console.line(f"{outcome.launched} cells launched; now {counts}")
    console.line(f"tracked in {outcome.tracking_uri}, run {outcome.parent_run_id}")


def show_tables(found: Sequence[Table], console: Console) -> None:
    """Each with the lines below it."""
    for table in found:
        console.table(table.headers, table.rows, table.title)
        for note in table.notes:
            console.line(note)


def outcome_to_json(outcome: AblationOutcome) -> dict[str, Any]:
    """As `ablate --json` prints it."""
    return {
        "status": outcome.status,
        "launched": outcome.launched,
        **plan_to_json(outcome.cells),
        "comparison": as_dict([outcome.comparison]),
        "parent_run_id": outcome.parent_run_id,
        "tracking_uri": outcome.tracking_uri,
    }


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "unknown"
    gpu = f", {cost.gpu_seconds / 3600:.2f} GPU hours" if cost.gpu_seconds else ""
    return f"{duration(cost.seconds)}{gpu}"
