"""From the planned cells of a grid to the comparison of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.ablation.grid import Grid
from pipeline.ablation.plan import PlannedCell
from pipeline.analysis.comparison import CELL_COLUMNS, Comparison, compare, figures_of
from pipeline.analysis.runs import FIGURES, runs_table

if TYPE_CHECKING:
    import pandas as pd


def comparisons(grid: Grid, cells: Sequence[PlannedCell], metric: str | None = None) -> list[Comparison]:
    """Compares planned cells by one metric, or by all of them with the grid's primary one first."""
    primary = grid.file.config.primary
    split = "tune" if grid.file.config.split == "tune" else "final"
    table = cells_of_grid(cells, split)
    metrics = [metric] if metric else sorted(FIGURES, key=lambda key: key != primary)
    return [compare(table, grid.base.name, key, split) for key in metrics]


def cells_of_grid(cells: Sequence[PlannedCell], split: str) -> pd.DataFrame:
    """One row per planned cell, as `compare` takes them; the times are those of its `tune` and `final` runs together."""
    import pandas as pd

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
                "seconds": sum(run.seconds or 0.0 for run in runs) if runs else None,
                "gpu_seconds": sum(run.gpu_seconds for run in runs) if runs else None,
            }
        )
    table = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype({"seconds": float, "gpu_seconds": float})
    evaluated = runs_table(one.evaluated for one in cells if one.evaluated).drop_duplicates("run_id")
    figures = figures_of(evaluated, split).set_index("run_id")[list(FIGURES)].astype(float)
    return table.join(figures, on="run_id")
