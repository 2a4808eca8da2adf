"""What is there of a grid and what is not: every cell joined with the tracking store. Nothing runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mgmrn.config import SCHEMA_VERSION
from pipeline.ablation.cells import GridCell, MissingCell
from pipeline.analysis.runs import CellState
from pipeline.config.identity import code_digest
from pipeline.tracking.environment import numerics
from pipeline.tracking.store import TrackedRun
from pipeline.train.cell import Cell
from pipeline.train.spec import Calibration
from pipeline.trials.known import Cost, KnownRuns, schema_of


@dataclass(frozen=True)
class PlannedCell:
    """A cell, and what the store knows of it."""

    cell: GridCell | MissingCell
    state: CellState
    reason: str = ""
    tune: TrackedRun | None = None
    """Its finished tune run."""
    evaluated: TrackedRun | None = None
    """The finished run that its scores are from."""
    cost: Cost | None = None
    """Of what is left to be run, by runs of the same shape; None where none was measured."""

    @property
    def calibration(self) -> Calibration | None:
        """What its tune run decided."""
        return Calibration.model_validate_json(self.tune.tags["mgmrn.calibration"]) if self.tune else None

    def to_json(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        cell = self.cell
        return {
            "benchmark": cell.benchmark,
            "variant": cell.variant,
            "seed": cell.seed,
            "config_hash": cell.tune.config_hash if isinstance(cell, GridCell) else None,
            "state": self.state,
            "reason": self.reason,
            "run_id": self.evaluated.run_id if self.evaluated else None,
            "predicted_gpu_hours": self.cost.gpu_seconds / 3600 if self.cost else None,
            "predicted_hours": self.cost.seconds / 3600 if self.cost else None,
        }


def plan_cells(cells: Sequence[GridCell | MissingCell], known: KnownRuns) -> list[PlannedCell]:
    """Every cell with its state, in their order."""
    return [_missing(cell) if isinstance(cell, MissingCell) else _plan(cell, known) for cell in cells]


def _missing(cell: MissingCell) -> PlannedCell:
    return PlannedCell(cell, "missing", cell.reason)


def _plan(cell: GridCell, known: KnownRuns) -> PlannedCell:
    tune = known.finished(cell.tune)
    if tune is None:
        state, reason = _unfinished(cell.tune, known)
        return PlannedCell(cell, state, reason, cost=_from_the_start(cell, known))
    if cell.final_data is None:
        return _scored(cell, known, tune, tune)
    final_cell = cell.final(Calibration.model_validate_json(tune.tags["mgmrn.calibration"]))
    final = known.finished(final_cell)
    if final is None:
        state, reason = _unfinished(final_cell, known)
        if state in ("new", "failed") and (changed := _changes([tune])):
            state, reason = "stale", changed
        left = _from_the_start(cell, known) if state == "stale" else known.cost(final_cell)
        return PlannedCell(cell, state, reason or "its tune run is done", tune, cost=left)
    return _scored(cell, known, tune, final)


def _scored(cell: GridCell, known: KnownRuns, tune: TrackedRun, evaluated: TrackedRun) -> PlannedCell:
    """A cell with a score: as it should be, or in need of another one."""
    if changed := _changes([tune, evaluated]):
        return PlannedCell(cell, "stale", changed, tune, evaluated, _from_the_start(cell, known))
    return PlannedCell(cell, "cached", "", tune, evaluated, Cost(0.0, 0.0))


def _unfinished(cell: Cell, known: KnownRuns) -> tuple[CellState, str]:
    run = known.latest(cell)
    if run is None:
        # Where a final run is asked for, its tune run is of these data.
        other = known.on_other_data(cell) if cell.split == "tune" else None
        if other is None:
            older = known.of_older_schema(cell)
            return (
                "new",
                f"an earlier run belongs to schema {schema_of(older)} of the configs, now {SCHEMA_VERSION}"
                if older
                else "",
            )
        return "stale", f"the data changed: digest {other.tags['mgmrn.data_digest'][:8]}, now {cell.data.digest[:8]}"
    if run.is_cut_off:
        if changed := _changes([run]):
            return "stale", f"was cut off, and {changed}"
        return "new", "was cut off and goes on from its checkpoint"
    if run.status == "FAILED":
        return "failed", run.tags.get("mgmrn.stop_reason", "")
    return "running", f"{cell.split} run {run.run_id}"


def _changes(runs: Sequence[TrackedRun]) -> str:
    """What is not as it was when the runs were made; empty where all is."""
    for run in runs:
        then, versions = run.tags.get("mgmrn.code_digest"), run.tags.get("mgmrn.numerics")
        if then is None or versions is None:
            return "was made before runs recorded their code"
        if then != code_digest():
            return f"the code changed: digest {then[:8]}, now {code_digest()[:8]}"
        if versions != numerics():
            return f"the environment changed: {_versions_that_differ(versions, numerics())}"
    return ""


def _versions_that_differ(then: str, now: str) -> str:
    before, after = set(then.split(", ")), now.split(", ")
    return (
        ", ".join(sorted(before - set(after)))
        + " then, "
        + ", ".join(one for one in after if one not in before)
        + " now"
    )


def _from_the_start(cell: GridCell, known: KnownRuns) -> Cost | None:
    """Of all runs of a cell."""
    parts = [known.cost(cell.tune)]
    if cell.final_data is not None:
        # Cost does not depend on what is calibrated, but for the number of epochs.
        parts.append(known.cost(cell.final(Calibration(epochs=cell.tune.config.schedule.epochs, gamma=0.0))))
    return _sum(parts)


def _sum(costs: Iterable[Cost | None]) -> Cost | None:
    """None where one is unknown."""
    total = Cost(0.0, 0.0)
    for cost in costs:
        if cost is None:
            return None
        total = Cost(total.seconds + cost.seconds, total.gpu_seconds + cost.gpu_seconds)
    return total


def total_cost(cells: Iterable[PlannedCell]) -> Cost | None:
    """Of all that can be run, a config that two variants share counted once; None where that of one is unknown."""
    costs = {one.cell.tune.config_hash: one.cost for one in cells if isinstance(one.cell, GridCell)}
    return _sum(costs.values())
