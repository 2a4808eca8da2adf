"""From planned cells to score cards, and from these to comparisons by every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.ablation.cells import GridCell
from pipeline.ablation.grid import Grid
from pipeline.ablation.plan import PlannedCell
from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.scores import FIGURES, ScoreCard
from pipeline.tracking.store import TrackedRun


def cards_of(cells: Sequence[PlannedCell]) -> list[ScoreCard]:
    """One card per cell, in their order."""
    return [_card(planned) for planned in cells]


def comparisons(grid: Grid, cells: Sequence[PlannedCell]) -> list[Comparison]:
    """By every figure, the primary one first."""
    cards = cards_of(cells)
    primary = grid.file.config.primary
    split = "tune" if grid.file.config.split == "tune" else "final"
    return [compare(cards, grid.base.name, key, split) for key in sorted(FIGURES, key=lambda key: key != primary)]


def figures_of(run: TrackedRun) -> dict[str, float]:
    """What a finished run is recorded to have come to, by the keys of `FIGURES`."""
    metrics = json.loads(run.tags["mgmrn.result"])["metrics"]
    prefix = "val/" if run.tags["mgmrn.split"] == "tune" else "test/"
    return {key: float(metrics[prefix + key]) for key in FIGURES if prefix + key in metrics}


def _card(planned: PlannedCell) -> ScoreCard:
    cell, run = planned.cell, planned.evaluated
    if run is None:
        return ScoreCard(cell.benchmark, cell.variant, cell.seed, planned.state, planned.reason)
    runs = {one.run_id: one for one in (planned.tune, run) if one is not None}.values()
    assert isinstance(cell, GridCell)
    return ScoreCard(
        benchmark=cell.benchmark,
        variant=cell.variant,
        seed=cell.seed,
        state=planned.state,
        reason=planned.reason,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        metrics=figures_of(run),
        seconds=sum(one.seconds or 0.0 for one in runs),
        gpu_seconds=sum(float(one.tags.get("mgmrn.gpu_seconds", 0)) for one in runs),
    )
