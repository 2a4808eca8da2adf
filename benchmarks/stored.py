"""CPU time and memory of `plan`, `compare` and `ablate` for one grid, beside more and more finished runs of other grids and of `train`.

The runs are made up, and logged through MLflow's client as a launch logs them: tags, params, data set and metrics of each epoch. Each size is
measured in copies of one store: `plan` before the grid's own runs exist, then with all of them finished `ablate`, which makes its links and
variants, and `ablate`, `plan` and `compare` again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measure
from pipeline.console import say

if TYPE_CHECKING:
    from pipeline.tracking.store import TrackingStore
    from pipeline.train.cell import Cell

EPOCHS = 10
HASHES = ("config_hash", "group_hash", "run_identity", "science_hash", "shape_hash")
OTHERS = ("mgmrn/train", *(f"mgmrn/ablation/other-{number}" for number in range(4)))
"""Experiments of the other runs."""
OWN_SHAPE = 5
"""One other run in so many has the shape of a cell of the grid, by whose time that of the cell is predicted."""


def main() -> None:
    """Fills a store step by step, and measures the verbs at each size."""
    parser = measure.data_parser(__doc__, rounds=3)
    parser.add_argument("grid", metavar="GRID", help="shipped ablation, or path of a YAML file")
    parser.add_argument("--runs", default="0,500,5000", help="numbers of other runs, ascending (%(default)s)")
    arguments = parser.parse_args()
    from pipeline.tracking.store import TrackingStore

    cells, results, stored = cells_of(arguments.grid, arguments.data_root.resolve()), [], 0
    with tempfile.TemporaryDirectory(prefix="stored-") as folder:
        database = Path(folder, "all.db")
        stores = [TrackingStore.connect(f"sqlite:///{database}", name) for name in OTHERS]
        for size in map(int, arguments.runs.split(",")):
            for number in range(stored, size):
                log_run(stores[number % len(stores)], cells[number % len(cells)], other=number)
            say(f"{size} runs, {database.stat().st_size / 2**20:.0f} MiB")
            stored, found = size, defaultdict[str, list[tuple[float, float]]](list)
            for number in range(arguments.rounds):
                copy = shutil.copy(database, Path(folder, f"{size}-{number}.db"))
                verb = partial(spent, arguments.grid, f"sqlite:///{copy}", arguments.data_root)
                found["plan, all new"].append(verb("plan"))
                for cell in cells:
                    log_run(TrackingStore.connect(f"sqlite:///{copy}"), cell)
                for name in ("ablate, links", "ablate, cached"):
                    found[name].append(verb("ablate", "--storage", f"{copy}.runs"))
                found["plan"].append(verb("plan"))
                found["compare"].append(verb("compare"))
            for name, both in found.items():
                seconds, mebibytes = zip(*both, strict=True)
                results.append(measure.spread(f"{name}, {size} runs", seconds, "s"))
                results.append(measure.spread(f"{name}, {size} runs, memory", mebibytes, "MiB"))
    measure.show("stored", results, "mlflow", cells=len(cells) // 2)


def spent(grid: str, tracking_uri: str, data_root: Path, verb: str, *more: str) -> tuple[float, float]:
    """CPU seconds in user mode and peak MiB of a verb of the pipeline."""
    words = ("-m", "pipeline", verb, grid, "--tracking-uri", tracking_uri, "--data-root", str(data_root), *more)
    process = subprocess.Popen([sys.executable, *words, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_utime, usage.ru_maxrss / 1024


def cells_of(grid: str, data_root: Path) -> list[Cell]:
    """The `tune` and `final` runs of a grid."""
    from pipeline.ablation.config import load_ablation
    from tests.grids import DECIDED
    from tests.grids import cells_of as complete

    return [run for cell in complete(load_ablation(grid), data_root) for run in (cell.tune, cell.final(DECIDED)) if run]


def log_run(store: TrackingStore, cell: Cell, other: int | None = None) -> None:
    """Logs a finished run of a cell, or with a number a run of another config."""
    from pipeline.config.compose import values_of
    from pipeline.config.yaml_tree import yaml_value
    from pipeline.spool import Epoch, NewRun
    from pipeline.train.cell import datasets_of
    from tests.grids import figures, tags_of

    score = (other or 0) % 97 / 100
    metrics = figures(cell, score) | {f"{kind}/{number}": 1.0 for kind, number in product(("train", "perf"), range(12))}
    tags = tags_of(cell, score, checkpoint_uri="x" * 80)
    if other is not None:
        digests = {name: hashlib.sha256(f"{name} {other}".encode()).hexdigest()[:16] for name in HASHES}
        if other % OWN_SHAPE == 0:
            del digests["shape_hash"]
        tags |= {f"mgmrn.{name}": digest for name, digest in digests.items()}
    params = {path: yaml_value(value) for path, value in values_of(cell.config).items()}
    new = NewRun(cell.name, tags, params, datasets_of([cell.data]))
    run_id = store.create_run(new)
    store.describe_run(run_id, new)
    store.log_epochs(run_id, [Epoch(step, metrics, new.time_ms) for step in range(EPOCHS)])
    store.finish(run_id, "FINISHED", "finished", new.time_ms + 60_000)


if __name__ == "__main__":
    measure.run_script(main)
