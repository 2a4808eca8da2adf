"""A grid whose runs are finished, as `compare`, `report` and `promote` find it, with nothing trained."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ablation.config import AblationFile
from pipeline.ablation.grid import GridCell
from pipeline.databases import sqlite_file
from pipeline.storage import StoragePath
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from pipeline.train.cell import Cell
from pipeline.where import Where
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

SCORES = {"base": (0.5, 0.61, 0.7), "smooth": (0.613, 0.7, 0.82), "rough": (0.4, 0.5)}
"""Score of the final runs on TINY by variant and seed; SUN has no data."""
CLASSES = {"A": ("seen", 0.25), "B": ("unseen", 0.5)}
"""Group and accuracy of the base by class; each variant adds a tenth of its score."""
_TEXT = (
    "benchmarks: [{small}, sun]\nseeds: [0, 1, 2]\nprimary: ausuc\n"
    "variants:\n  smooth: {{loss.label_smoothing: 0.1}}\n  rough: {{loss.scale: 40}}\n"
)


@dataclass(frozen=True)
class FinishedGrid:
    folder: Path
    store: TrackingStore
    runs: dict[str, list[str]]
    """Ids of the final runs by variant."""
    cells: dict[str, list[GridCell]]
    """Cells on TINY by variant."""

    @property
    def options(self) -> list[str]:
        return ["--tracking-uri", self.store.uri, "--data-root", str(self.folder / "data")]

    @property
    def arguments(self) -> list[str]:
        return [str(self.folder / "grid.yaml"), *self.options]

    @property
    def file(self) -> AblationFile:
        return write_grid(self.folder, _TEXT.format(small=self.folder / "small.yaml"))

    @property
    def where(self) -> Where:
        return Where(self.store.uri, self.folder / "data", StoragePath.parse(self.folder / "runs"))

    def copied_to(self, folder: Path) -> FinishedGrid:
        """The grid with a copy of its database and files."""
        shutil.copy(sqlite_file(self.store.uri), folder / "mlflow.db")
        shutil.copytree(sqlite_file(self.store.uri).parent / "mlruns", folder / "mlruns")
        store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
        return FinishedGrid(self.folder, store, self.runs, self.cells)


def add_run(store: TrackingStore, cell: Cell, score: float, **more: Any) -> str:
    """Create a finished run of committed code with a model; returns its id."""
    tags = {"code_sha": "a" * 40, "code_dirty": "false"} | more
    run_id = run_in(store, store.create_parent("launch", {}), cell, score, **tags)
    model = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run_id)
    store.set_tags(run_id, {MODEL_TAG: f"models:/{model.model_id}"})
    return run_id


def make_finished_grid(folder: Path, tables: Path) -> FinishedGrid:
    """Create the grid's runs, with the artifacts that a report reads."""
    shutil.copy(tables, folder / "mlflow.db")
    write_data(folder / "data")
    made = FinishedGrid(folder, TrackingStore.connect(f"sqlite:///{folder}/mlflow.db"), {}, {})
    for cell in cells_of(made.file, folder / "data"):
        made.cells.setdefault(cell.variant, []).append(cell)
        for score in SCORES[cell.variant][cell.seed : cell.seed + 1]:
            run_in(made.store, made.store.create_parent("launch", {}), cell.tune, 0.9)
            run_id = add_run(made.store, cell.final(DECIDED), score)
            made.runs.setdefault(cell.variant, []).append(run_id)
            curve, classes = folder / "curve.csv", folder / "per_class.csv"
            curve.write_text(f"gamma,unseen,seen,harmonic\n0,0.0,{score},0\n1,{score},0.0,0\n")
            rows = [f"{name},{group},4,{accuracy + score / 10}" for name, (group, accuracy) in CLASSES.items()]
            classes.write_text("\n".join(("class,group,images,accuracy", *rows)))
            for path in (curve, classes):
                made.store.log_file(run_id, path, "eval")
    return made
