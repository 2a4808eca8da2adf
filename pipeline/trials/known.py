"""Runs of the tracking store that may answer for a cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from mgmrn.config import SCHEMA_VERSION
from pipeline.tracking.store import TRAIN, TrackedRun, TrackingStore
from pipeline.train.cell import Cell

SHARED_WITH = (TRAIN, "mgmrn/ablation/%")
"""Experiments whose runs count for every grid."""
RUNS = "tags.`mgmrn.kind` = 'run'"
FINISHED = " and attributes.status = 'FINISHED'"
MOST_COSTS = 20
"""Number of runs, the latest of their shape, by which a cost is predicted."""

Condition = tuple[str, Literal["=", "!="], str]
"""Name of an `mgmrn.` tag, and a value that it has or has not."""


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

    def __init__(self, find: Callable[..., Sequence[TrackedRun]], experiment_id: str) -> None:
        """`find(most, *conditions)` searches for training runs, the latest first: all of them, or at `most` so many finished ones."""
        self._find = find
        self._experiment_id = experiment_id

    @classmethod
    def among(cls, runs: Iterable[TrackedRun], experiment_id: str) -> KnownRuns:
        training = [run for run in runs if run.tags.get("mgmrn.kind") == "run"]

        def find(most: int | None, *conditions: Condition) -> list[TrackedRun]:
            found = [run for run in training if most is None or run.status == "FINISHED"]
            for name, operator, value in conditions:
                found = [run for run in found if (run.tags.get(f"mgmrn.{name}") == value) == (operator == "=")]
            return found[:most]

        return cls(find, experiment_id)

    @classmethod
    def in_store(cls, store: TrackingStore) -> KnownRuns:
        """Those of trainings and grids in a store, which is asked once for all seeds of a config and reads no other runs."""
        experiments = [str(one.experiment_id) for one in store.experiments(*SHARED_WITH)]

        @cache
        def find(most: int | None, *conditions: Condition) -> list[TrackedRun]:
            parts = [f"tags.`mgmrn.{name}` {operator} '{value}'" for name, operator, value in conditions]
            # A database works through the runs that the first condition leaves, so that all runs come last.
            return store.search(" and ".join([*parts, RUNS]) + FINISHED * bool(most), experiments, most)

        return cls(find, store.experiment_id)

    @classmethod
    def of_cell(cls, store: TrackingStore, cell: Cell, more: str = "") -> KnownRuns:
        """Read the runs of one config and split, from the store's own experiment and those of trainings and grids.

        `more` is added to the filter in MLflow's syntax.
        """
        config = f"tags.`mgmrn.config_hash` = '{cell.config_hash}' and tags.`mgmrn.split` = '{cell.split}'"
        experiments = {store.experiment_id, *(str(one.experiment_id) for one in store.experiments(*SHARED_WITH))}
        return cls.among(store.search(f"{config} and {RUNS}{more}", experiments), store.experiment_id)

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
        return self._unlike(cell, ("data_digest", "!=", cell.data.digest), ("science_hash", "=", cell.science_hash))

    def of_other_schema(self, cell: Cell) -> TrackedRun | None:
        """Latest finished run of the same names and seed whose config was hashed by another schema."""
        other: Condition = ("schema", "!=", str(SCHEMA_VERSION))
        return self._unlike(cell, other, ("variant", "=", cell.variant), ("seed", "=", str(cell.config.seed)))

    def cost(self, cell: Cell) -> Cost | None:
        """Median cost of the latest finished runs of the same shape and split; None without any."""
        found = self._find(MOST_COSTS, ("shape_hash", "=", cell.shape_hash), ("split", "=", cell.split))
        same = [run for run in found if run.seconds is not None]
        if not same:
            return None
        on_gpus = [run.metrics for run in same if "perf/gpu_mem_mb" in run.metrics]
        return Cost(
            statistics.median(run.seconds or 0 for run in same),
            statistics.median(run.gpu_seconds for run in same),
            max((metrics["perf/peak_mem_mb"] for metrics in on_gpus), default=0.0),
            min((metrics["perf/gpu_mem_mb"] for metrics in on_gpus), default=0.0),
        )

    def _unlike(self, cell: Cell, other: Condition, *same: Condition) -> TrackedRun | None:
        """Latest finished run; searched for each cell only where any run of the benchmark is other."""
        here = ("benchmark", "=", cell.data.benchmark), ("split", "=", cell.split)
        found = self._find(1, other, *here) and self._find(1, *same, other, *here)
        return next(iter(found), None)

    def _of(self, cell: Cell) -> Iterator[TrackedRun]:
        wanted = {"mgmrn.config_hash": cell.config_hash, "mgmrn.split": cell.split}
        if cell.split == "final":
            wanted["mgmrn.calibration"] = cell.calibration_tag
        return (
            run for run in self._find(None, ("group_hash", "=", cell.group_hash)) if wanted.items() <= run.tags.items()
        )
