"""From planned cells to score cards, and from these to comparisons by every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.ablation.cells import GridCell
from pipeline.ablation.grid import Grid
from pipeline.ablation.plan import PlannedCell
from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.scores import FIGURES, ScoreCard, prefix_of
from pipeline.tracking.store import TrackedRun


def cards_of(cells: Sequence[PlannedCell]) -> list[ScoreCard]:
    """One card per cell, in their order."""
    return [_card(planned) for planned in cells]


def comparisons(grid: Grid, cells: Sequence[PlannedCell]) -> list[Comparison]:
    """By every figure, the primary one first."""
    primary = grid.file.config.primary
    return [comparison_by(key, grid, cells) for key in sorted(FIGURES, key=lambda key: key != primary)]


def comparison_by(metric: str, grid: Grid, cells: Sequence[PlannedCell]) -> Comparison:
    """By one figure, a key of `FIGURES`."""
    split = "tune" if grid.file.config.split == "tune" else "final"
    return compare(cards_of(cells), grid.base.name, metric, split)


def figures_of(run: TrackedRun) -> dict[str, float]:
    """What a finished run is recorded to have come to, by the keys of `FIGURES`."""
    metrics = json.loads(run.tags["mgmrn.result"])["metrics"]
    prefix = prefix_of(run.tags["mgmrn.split"])
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
        gpu_seconds=sum(one.gpu_seconds for one in runs),
    )
