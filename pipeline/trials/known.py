"""Runs of the tracking store that may answer for a cell."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mgmrn.config import SCHEMA_VERSION
from pipeline.tracking.store import TRAIN, TrackedRun, TrackingStore
from pipeline.train.cell import Cell

SHARED_WITH = (TRAIN, "mgmrn/ablation/%")
"""Experiments whose runs count for every grid."""
RUNS = "tags.`mgmrn.kind` = 'run'"
FINISHED = " and attributes.status = 'FINISHED'"


@dataclass(frozen=True)
class Cost:
    """Measured or predicted time of runs, and memory of the largest."""

    seconds: float
    gpu_seconds: float
    peak_mib: float = field(default=0.0, compare=False)
    """Peak of GPU memory."""
    gpu_mib: float = field(default=math.inf, compare=False)
    """Memory of the smallest GPU on which it was measured; 0 where a run was never on one."""


class KnownRuns:
    """Runs that may answer for a cell, the latest first; those that were cut off in another experiment are not resumed."""

    def __init__(self, runs: Iterable[TrackedRun], experiment_id: str) -> None:
        self._runs = [run for run in runs if run.tags.get("mgmrn.kind") == "run"]
        self._experiment_id = experiment_id
        self._by_config: defaultdict[tuple[str | None, str | None], list[TrackedRun]] = defaultdict(list)
        for run in self._runs:
            self._by_config[run.tags.get("mgmrn.config_hash"), run.tags.get("mgmrn.split")].append(run)

    @classmethod
    def read(cls, store: TrackingStore) -> KnownRuns:
        return cls(store.runs_of(SHARED_WITH, RUNS), store.experiment_id)

    @classmethod
    def of_cell(cls, store: TrackingStore, cell: Cell, more: str = "") -> KnownRuns:
        """Read the runs of one config and split, from the store's own experiment and those of trainings and grids.

        `more` is added to the filter in MLflow's syntax.
        """
        config = f"tags.`mgmrn.config_hash` = '{cell.config_hash}' and tags.`mgmrn.split` = '{cell.split}'"
        wanted = f"{RUNS} and {config}{more}"
        return cls([*store.own_runs(wanted), *store.runs_of(SHARED_WITH, wanted)], store.experiment_id)

    def is_being_run(self, cell: Cell) -> bool:
        return any(run.status == "RUNNING" and not run.is_cut_off for run in self._of(cell))

    def finished(self, cell: Cell) -> TrackedRun | None:
        return next((run for run in self._of(cell) if run.status == "FINISHED"), None)

    def latest(self, cell: Cell) -> TrackedRun | None:
        """Latest run of this cell in any state, without those that were cut off in another experiment."""
        runs = (run for run in self._of(cell) if run.experiment_id == self._experiment_id or not run.is_cut_off)
        return next(runs, None)

    def on_other_data(self, cell: Cell) -> TrackedRun | None:
        """Latest finished run of the same config on other content of the benchmark."""
        same = self._finished_with(science_hash=cell.science_hash, split=cell.split)
        return next((run for run in same if run.tags.get("mgmrn.data_digest") != cell.data.digest), None)

    def of_older_schema(self, cell: Cell) -> TrackedRun | None:
        """Latest finished run of the same names and seed whose config was hashed by an older schema."""
        seed = str(cell.config.seed)
        same = self._finished_with(benchmark=cell.data.benchmark, variant=cell.variant, seed=seed, split=cell.split)
        return next((run for run in same if schema_of(run) < SCHEMA_VERSION), None)

    def cost(self, cell: Cell) -> Cost | None:
        """Median cost of finished runs of the same shape and split; None without any."""
        same = [
            run for run in self._finished_with(shape_hash=cell.shape_hash, split=cell.split) if run.seconds is not None
        ]
        if not same:
            return None
        on_gpus = [run.metrics for run in same if "perf/gpu_mem_mb" in run.metrics]
        return Cost(
            statistics.median(run.seconds or 0 for run in same),
            statistics.median(run.gpu_seconds for run in same),
            max((metrics["perf/peak_mem_mb"] for metrics in on_gpus), default=0.0),
            min((metrics["perf/gpu_mem_mb"] for metrics in on_gpus), default=0.0),
        )

    def _of(self, cell: Cell) -> Iterator[TrackedRun]:
        for run in self._by_config.get((cell.config_hash, cell.split), []):
            if cell.split == "tune" or run.tags.get("mgmrn.calibration") == cell.calibration_tag:
                yield run

    def _finished_with(self, **tags: str) -> Iterator[TrackedRun]:
        """Finished runs with these `mgmrn.` tags, the latest first."""
        wanted = {f"mgmrn.{name}": value for name, value in tags.items()}.items()
        return (run for run in self._runs if run.status == "FINISHED" and wanted <= run.tags.items())


def schema_of(run: TrackedRun) -> int:
    """Schema version by which the config of a run was hashed; runs of version 1 carry none."""
    return int(run.tags.get("mgmrn.schema", "1"))
