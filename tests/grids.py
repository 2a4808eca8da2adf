"""Grids on the data set of `tests.tiny`, and runs as launches would have left them, with nothing trained."""

import json
import socket
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.ablation.config import AblationFile, load_ablation
from pipeline.ablation.grid import GridCell, make_cells, make_grid
from pipeline.ablation.plan import PlannedCell, plan_cell
from pipeline.analysis.runs import FIGURES
from pipeline.driver import driver_tag
from pipeline.spool import PARENT_TAG, NewRun
from pipeline.tracking.store import DRIVER_TAG, TrackedRun, TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.placement import Placement
from pipeline.train.spec import Calibration
from pipeline.trials.known import KnownRuns
from tests.ray.small import EXPERIMENT
from tests.tiny import write_benchmark

DECIDED = Calibration(epochs=2, gamma=0.25)
"""Calibration of every finished tune run here."""
DEAD_DRIVER = f"{socket.gethostname()}:999999999:0.0"
OWN = "1"
"""Id of the experiment of the grid and of all runs that `a_run` makes."""
SMOOTH = "variants:\n  smooth: {loss.label_smoothing: 0.1}\n"

_numbers = count()


def write_data(root: Path, **changed: Any) -> Path:
    """Write lists and attributes without pictures."""
    return write_benchmark(root, pictures=False, **changed)


def write_grid(folder: Path, text: str = SMOOTH, name: str = "grid") -> AblationFile:
    """Write an ablation of `small.yaml` and that file, with the seed 0 unless the text names others."""
    (folder / "small.yaml").write_text(EXPERIMENT)
    seeds = "" if "seeds:" in text else "seeds: [0]\n"
    path = folder / f"{name}.yaml"
    path.write_text(f"base: {folder}/small.yaml\n{seeds}{text}")
    return load_ablation(str(path))


def cells_of(file: AblationFile, data_root: Path) -> list[GridCell]:
    """Cells of a grid whose data are all there."""
    cells = make_cells(make_grid(file), data_root)
    return [cell for cell in cells if cell.tune]


def plan_of(cells: Sequence[GridCell], *runs: TrackedRun) -> list[PlannedCell]:
    """Plan of cells with these runs in the store, the latest of which is named last."""
    known = KnownRuns.among(reversed(runs), OWN)
    return [plan_cell(cell, known) for cell in cells]


def tags_of(cell: Cell, score: float | None = None, decided: Calibration = DECIDED, **more: str) -> dict[str, str]:
    """Tags of a run, with a score also those of its end; `more` are further tags, without `mgmrn.`."""
    tags = dict(cell.tags("study", Placement(1, 1, 0)))
    if score is not None:
        tags["mgmrn.result"] = json.dumps({"gamma": 0.25, "metrics": figures(cell, score)})
        if cell.split == "tune":
            tags["mgmrn.calibration"] = decided.model_dump_json()
    return tags | {f"mgmrn.{name}": value for name, value in more.items()}


def figures(cell: Cell, score: float) -> dict[str, float]:
    """Figures of a run, each another one, by their names in the store."""
    prefix = "val/" if cell.split == "tune" else "test/"
    return {prefix + key: score + position / 100 for position, key in enumerate(FIGURES)}


def a_run(cell: Cell, status: str = "FINISHED", *, seconds: float | None = 10.0, **more: Any) -> TrackedRun:
    """Run without a store; `more` as for `tags_of`."""
    if status == "FINISHED":
        more.setdefault("score", 0.5)
    return TrackedRun(f"r{next(_numbers)}", cell.name, status, tags_of(cell, **more), {}, OWN, seconds)


def run_in(store: TrackingStore, parent_run_id: str, cell: Cell, score: float, **more: Any) -> str:
    """Add a finished run without params to a store; returns its id."""
    tags = {**tags_of(cell, score, **more), PARENT_TAG: parent_run_id, DRIVER_TAG: driver_tag()}
    run_id = store.create_run(NewRun(cell.name, tags))
    store.log_metrics(run_id, 2, figures(cell, score), 0)
    store.finish(run_id, "FINISHED", "finished")
    return run_id
