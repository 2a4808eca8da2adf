"""Plan of a grid: state and predicted cost of every cell, by the runs in the tracking store. Nothing runs."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mgmrn.config import SCHEMA_VERSION
from pipeline.ablation.config import AblationFile
from pipeline.ablation.grid import Grid, GridCell, make_cells, make_grid
from pipeline.analysis.runs import CellState
from pipeline.config.identity import code_digest
from pipeline.databases import database_address, is_missing
from pipeline.tracking.environment import numerics
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.placement import smallest_part
from pipeline.train.spec import Calibration
from pipeline.train.tracked import recorded_calibration
from pipeline.trials.known import Cost, KnownRuns
from pipeline.where import Where

TO_RUN: frozenset[CellState] = frozenset({"new", "failed", "stale"})
"""States of the cells that are not as they should be."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its state and its runs in the store."""

    cell: GridCell
    state: CellState
    reason: str = ""
    tune: TrackedRun | None = None
    evaluated: TrackedRun | None = None
    """Finished run with the scores of the cell."""
    cost: Cost | None = None
    """Cost of the remaining runs, by finished runs of the same shape; None without any."""

    @property
    def calibration(self) -> Calibration | None:
        return recorded_calibration(self.tune) if self.tune else None

    def to_json(self) -> dict[str, Any]:
        cell = self.cell
        return {
            "benchmark": cell.benchmark,
            "variant": cell.variant,
            "seed": cell.seed,
            "config_hash": cell.config_hash,
            "state": self.state,
            "reason": self.reason,
            "run_id": self.evaluated.run_id if self.evaluated else None,
            **_predicted(self.cost),
        }


@dataclass(frozen=True)
class Survey:
    """A grid, its cells, and the tracking store."""

    grid: Grid
    store: TrackingStore
    cells: tuple[GridCell, ...]

    def plan(self) -> list[PlannedCell]:
        known = KnownRuns.in_store(self.store)
        return [plan_cell(cell, known) for cell in self.cells]

    @property
    def key(self) -> str:
        """Key of the parent run; it depends on every cell, so that a changed grid gets a parent of its own."""
        parts = [f"{one.benchmark} {one.variant} {one.seed} {one.config_hash or 'missing'}" for one in self.cells]
        return hashlib.sha256("\n".join([self.grid.file.name, *parts]).encode()).hexdigest()[:16]


def planned(file: AblationFile, where: Where) -> list[PlannedCell]:
    """Every cell of a grid with its state; without a tracking database, which is not made, all are new or missing."""
    if is_missing(database_address(where.tracking_uri, "--tracking-uri")):
        nothing = KnownRuns.among([], "")
        return [plan_cell(cell, nothing) for cell in make_cells(make_grid(file), where.data_root.resolve())]
    return survey(file, where, TrackingStore.open).plan()


def survey(file: AblationFile, where: Where, connect: Callable[[str, str], TrackingStore]) -> Survey:
    """Read data and configs, and connect to the store."""
    grid = make_grid(file)
    store = connect(where.tracking_uri, f"mgmrn/ablation/{file.name}")
    return Survey(grid, store, tuple(make_cells(grid, where.data_root.resolve())))


def plan_cell(cell: GridCell, known: KnownRuns) -> PlannedCell:
    """A cell with its state and the cost of what remains."""
    if cell.tune is None:
        return PlannedCell(cell, "missing", cell.missing)
    tune = evaluated = known.finished(cell.tune)
    if tune is None:
        state, reason = _unfinished(cell.tune, known)
        return PlannedCell(cell, state, reason, cost=_whole_cost(cell, known))
    if cell.final_data is not None:
        calibration = recorded_calibration(tune)
        assert calibration is not None
        final_cell = cell.final(calibration)
        evaluated = known.finished(final_cell)
        if evaluated is None:
            state, reason = _unfinished(final_cell, known)
            if state in ("new", "failed") and (changed := _changes(cell.tune, [tune])):
                state, reason = "stale", changed
            cost = _whole_cost(cell, known) if state == "stale" else known.cost(final_cell)
            return PlannedCell(cell, state, reason or "its tune run is done", tune, cost=cost)
    assert evaluated is not None
    if changed := _changes(cell.tune, [tune, evaluated]):
        return PlannedCell(cell, "stale", changed, tune, evaluated, _whole_cost(cell, known))
    return PlannedCell(cell, "cached", "", tune, evaluated, Cost(0.0, 0.0))


def _unfinished(cell: Cell, known: KnownRuns) -> tuple[CellState, str]:
    run = known.latest(cell)
    if run is None:
        # The tune run of a final run is of the present data.
        if cell.split == "tune" and (other := known.on_other_data(cell)):
            then, now = other.tags["mgmrn.data_digest"], cell.data.digest
            return "stale", f"the data changed: digest {then[:8]}, now {now[:8]}"
        if earlier := known.of_other_schema(cell):
            schema = earlier.tags["mgmrn.schema"]
            return "new", f"an earlier run belongs to schema {schema} of the configs, now {SCHEMA_VERSION}"
        return "new", ""
    if run.is_cut_off:
        if changed := _changes(cell, [run]):
            return "stale", f"was cut off, and {changed}"
        return "new", "was cut off and goes on from its checkpoint"
    if run.status == "FAILED":
        return "failed", run.tags.get("mgmrn.stop_reason", "")
    return "running", f"{cell.split} run {run.run_id}"


def _changes(cell: Cell, runs: Sequence[TrackedRun]) -> str:
    """Change of code or environment since the runs were made; empty without any."""
    for run in runs:
        then, versions = run.tags.get("mgmrn.code_digest"), run.tags.get("mgmrn.numerics")
        if then is None or versions is None:
            return "was made before runs recorded their code"
        if then != code_digest():
            return f"the code changed: digest {then[:8]}, now {code_digest()[:8]}"
        if versions != (here := numerics(cell.config)):
            before, now = versions.split(", "), here.split(", ")
            old = ", ".join(sorted(set(before) - set(now)))
            new = ", ".join(one for one in now if one not in before)
            return f"the environment changed: {old} then, {new} now"
    return ""


def _whole_cost(cell: GridCell, known: KnownRuns) -> Cost | None:
    """Cost of all runs of a cell; None where that of one is unknown."""
    assert cell.tune is not None
    costs = [known.cost(cell.tune)]
    if cell.final_data is not None:
        # Of a calibration only the number of epochs matters.
        costs.append(known.cost(cell.final(Calibration(epochs=cell.tune.config.schedule.epochs, gamma=0.0))))
    return _sum(costs)


def total_cost(cells: Iterable[PlannedCell]) -> Cost | None:
    """Cost of cells, a config that two variants share counted once; None where one is unknown."""
    costs = {one.cell.config_hash: one.cost for one in cells if one.cell.tune}
    return _sum(costs.values())


def _sum(costs: Iterable[Cost | None]) -> Cost | None:
    total = Cost(0.0, 0.0)
    for cost in costs:
        if cost is None:
            return None
        total = Cost(
            total.seconds + cost.seconds,
            total.gpu_seconds + cost.gpu_seconds,
            max(total.peak_mib, cost.peak_mib),
            min(total.gpu_mib, cost.gpu_mib),
        )
    return total


def proposed_part(cells: Iterable[PlannedCell]) -> str:
    """A sentence on the part of a GPU that each of the cells needs; empty where that is a whole one, or was not measured."""
    cost = total_cost(cells)
    part = smallest_part(cost.peak_mib, cost.gpu_mib) if cost and cost.peak_mib else None
    if not cost or part is None:
        return ""
    peak = f"peak {cost.peak_mib / 1024:.1f} GiB of {cost.gpu_mib / 1024:.0f}"
    return f"{part:g} GPU a run would fit ({peak}); add --gpus-per-worker {part:g}"


def totals(cells: Sequence[PlannedCell]) -> dict[str, int]:
    """State → number of cells."""
    states = [cell.state for cell in cells]
    return {state: states.count(state) for state in sorted(set(states))}


def plan_to_json(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Serialise to the object that `plan --json` prints."""
    left = total_cost(one for one in cells if one.state in TO_RUN)
    return {"cells": [cell.to_json() for cell in cells], "totals": totals(cells), **_predicted(left)}


def _predicted(cost: Cost | None) -> dict[str, float | None]:
    gpu_hours, hours = (cost.gpu_seconds / 3600, cost.seconds / 3600) if cost else (None, None)
    return {"predicted_gpu_hours": gpu_hours, "predicted_hours": hours}
