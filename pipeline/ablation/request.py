"""What `ablate` is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ablation.config import AblationFile
from pipeline.ablation.plan import PlannedCell, total_cost
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import CellState
from pipeline.where import Where

Mode = Literal["missing", "retry", "force"]
Status = Literal["finished", "cached", "failed", "stopped"]

RUN_BY: Mapping[Mode, frozenset[CellState]] = {
    "missing": frozenset({"new"}),
    "retry": frozenset({"new", "failed", "stale"}),
    "force": frozenset({"new", "failed", "stale", "cached"}),
}
"""Which cells each mode runs; one that is running elsewhere or whose benchmark is not at hand never is."""

TO_RUN = RUN_BY["retry"]
"""States of what is neither there as it should be, nor on, nor out of reach."""


@dataclass(frozen=True)
class AblationRequest:
    """One launch of a grid, and where it runs."""

    file: AblationFile
    where: Where
    mode: Mode = "missing"
    concurrency: int | None = None
    """None: as many runs at once as the cluster has room for."""
    budget_hours: float | None = None
    """None: what the file says, if anything."""


@dataclass(frozen=True)
class AblationOutcome:
    """What a launch came to."""

    status: Status
    """stopped: the budget ended before all cells were begun."""
    launched: int
    """Cells that were begun."""
    cells: tuple[PlannedCell, ...]
    """Of the whole grid, after the launch."""
    comparison: Comparison
    """By the primary figure."""
    parent_run_id: str
    tracking_uri: str

    @property
    def totals(self) -> dict[str, int]:
        """State → number of cells."""
        return totals(self.cells)


def totals(cells: Sequence[PlannedCell]) -> dict[str, int]:
    """State → number of cells."""
    states = [cell.state for cell in cells]
    return {state: states.count(state) for state in sorted(set(states))}


def to_be_run(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """What is left of a grid."""
    return [cell for cell in cells if cell.state in TO_RUN]


def plan_to_json(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """As `plan --json` prints it."""
    cost = total_cost(to_be_run(cells))
    return {
        "cells": [cell.to_json() for cell in cells],
        "totals": totals(cells),
        "predicted_gpu_hours": cost.gpu_seconds / 3600 if cost else None,
        "predicted_hours": cost.seconds / 3600 if cost else None,
    }
