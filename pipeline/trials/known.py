"""Runs of the tracking store that may answer for a cell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mgmrn.config import SCHEMA_VERSION
from pipeline.tracking.store import TRAIN, TrackedRun, TrackingStore
from pipeline.train.cell import Cell

SHARED_WITH = (TRAIN, "mgmrn/ablation/%")
"""Experiments whose runs count for every grid."""


@dataclass(frozen=True)
class Cost:
    """Of runs, measured or predicted."""

    seconds: float
    """By the clock."""
    gpu_seconds: float


class KnownRuns:
    """All runs that may answer for a cell, read once.

    Args:
        runs: the latest first.
        experiment_id: the grid's own; a run that was cut off elsewhere is not gone on with here.
    """

    def __init__(self, runs: Iterable[TrackedRun], experiment_id: str) -> None:
        self._runs = [run for run in runs if run.tags.get("mgmrn.kind") == "run"]
        self._experiment_id = experiment_id
        self._by_config: dict[tuple[str, str], list[TrackedRun]] = {}
        for run in self._runs:
            key = run.tags.get("mgmrn.config_hash", ""), run.tags.get("mgmrn.split", "")
            self._by_config.setdefault(key, []).append(run)

    @classmethod
    def read(cls, store: TrackingStore) -> KnownRuns:
        """From the store's experiments of trainings and grids."""
        return cls(store.runs_of(SHARED_WITH, "tags.`mgmrn.kind` = 'run'"), store.experiment_id)

    @classmethod
    def of_cell(cls, store: TrackingStore, cell: Cell) -> KnownRuns:
        """Runs of one cell's config and split, from the store's own experiment and those of `read`."""
        wanted = f"tags.`mgmrn.kind` = 'run' and tags.`mgmrn.config_hash` = '{cell.config_hash}' and tags.`mgmrn.split` = '{cell.split}'"
        return cls([*store.own_runs(wanted), *store.runs_of(SHARED_WITH, wanted)], store.experiment_id)

    def is_being_run(self, cell: Cell) -> bool:
        """Whether a living driver works on exactly this cell."""
        return any(run.status == "RUNNING" and not run.is_cut_off for run in self._of(cell))

    def finished(self, cell: Cell) -> TrackedRun | None:
        """The latest finished run of exactly this cell."""
        return next((run for run in self._of(cell) if run.status == "FINISHED"), None)

    def latest(self, cell: Cell) -> TrackedRun | None:
        """The latest run of exactly this cell, whatever became of it, unless it was cut off elsewhere."""
        runs = (run for run in self._of(cell) if run.experiment_id == self._experiment_id or not run.is_cut_off)
        return next(runs, None)

    def on_other_data(self, cell: Cell) -> TrackedRun | None:
        """The latest finished run of the same science on a benchmark of the same name whose content was another."""
        wanted = {
            "mgmrn.science_hash": cell.science_hash,
            "mgmrn.split": cell.split,
        }
        return next(
            (
                run
                for run in self._runs
                if run.status == "FINISHED"
                and all(run.tags.get(tag) == value for tag, value in wanted.items())
                and run.tags.get("mgmrn.data_digest") != cell.data.digest
            ),
            None,
        )

    def of_older_schema(self, cell: Cell) -> TrackedRun | None:
        """The latest finished run of the same names and seed whose config was hashed by an older schema."""
        wanted = {
            "mgmrn.benchmark": cell.data.benchmark,
            "mgmrn.variant": cell.variant,
            "mgmrn.seed": str(cell.config.seed),
            "mgmrn.split": cell.split,
        }
        return next(
            (
                run
                for run in self._runs
                if run.status == "FINISHED"
                and all(run.tags.get(tag) == value for tag, value in wanted.items())
                and schema_of(run) < SCHEMA_VERSION
            ),
            None,
        )

    def cost(self, cell: Cell) -> Cost | None:
        """Median of finished runs of the same shape on the same split; None without any."""
        shape = cell.shape_hash
        same = [
            run
            for run in self._runs
            if run.status == "FINISHED"
            and run.seconds is not None
            and (run.tags.get("mgmrn.shape_hash"), run.tags.get("mgmrn.split")) == (shape, cell.split)
        ]
        if not same:
            return None
        return Cost(
            statistics.median(run.seconds or 0.0 for run in same),
            statistics.median(run.gpu_seconds for run in same),
        )

    def _of(self, cell: Cell) -> list[TrackedRun]:
        runs = self._by_config.get((cell.config_hash, cell.split), [])
        return [
            run for run in runs if run.tags.get("mgmrn.calibration") == cell.calibration_tag or cell.split == "tune"
        ]


def schema_of(run: TrackedRun) -> int:
    """Schema version by which a run's config was hashed; runs of version 1 carry none."""
    return int(run.tags.get("mgmrn.schema", "1"))
