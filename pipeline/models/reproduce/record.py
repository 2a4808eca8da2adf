"""What is recorded of a run that is to be reproduced, and in what it differs from what is here now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from mgmrn.data.splits import SplitData, load_final, load_tune
from mgmrn.errors import UserError
from mgmrn.weights import is_weights_file
from pipeline.config.compose import ComposedConfig, load_experiment, resolve_weights
from pipeline.config.identity import code_digest
from pipeline.tracking.environment import environment, numerics
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import Cell, make_cell
from pipeline.train.spec import Split
from pipeline.train.tracked import recorded_calibration
from pipeline.train.workers import Workers, parse_workers

CONFIG_ARTIFACT = "config/resolved.yaml"
ENVIRONMENT_ARTIFACT = "env/environment.json"


@dataclass(frozen=True)
class Record:
    """A finished run and what it was made from."""

    run: TrackedRun
    composed: ComposedConfig
    """Named like the study that the run belongs to."""
    machine: Mapping[str, Any]
    """`cpu` and `gpus`."""

    @property
    def split(self) -> Split:
        """What it was scored on."""
        return cast(Split, self.run.tags["mgmrn.split"])

    @property
    def workers(self) -> Workers:
        """How many trained it."""
        return parse_workers(self.run.tags["mgmrn.world_size"])

    @property
    def cpus_per_worker(self) -> int | None:
        """None where that was not recorded."""
        return _number(self.run.tags.get("mgmrn.cpus_per_worker"))

    @property
    def gpus_per_worker(self) -> int | None:
        """None where that was not recorded."""
        return _number(self.run.tags.get("mgmrn.gpus_per_worker"))

    def cell(self, data_root: Path) -> Cell:
        """The same run, to be had here; its hashes are of the data and the weights that are here.

        Raises:
            UserError: when the data set or the weights file is not here.
        """
        config = resolve_weights(_with_weights_here(self.composed, data_root).config, data_root)
        load = load_tune if self.split == "tune" else load_final
        data: SplitData = load(data_root, config.benchmark)
        calibration = recorded_calibration(self.run) if self.split == "final" else None
        composed = replace(self.composed, config=config)
        return make_cell(composed, config.seed, data, calibration, self.run.tags["mgmrn.variant"])


def read_record(store: TrackingStore, run: TrackedRun) -> Record:
    """Reads what a run has left in the store.

    Raises:
        UserError: when the run is no finished training run.
        TrackingError: when the store is away, or the run's artifacts are gone.
    """
    if run.tags.get("mgmrn.kind") != "run" or run.status != "FINISHED":
        raise UserError(
            f"{run.run_id} is no finished training run", "RUN", "name a run that `train` or `ablate` printed"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resolved.yaml"
        file.write_text(store.read_text(run.run_id, CONFIG_ARTIFACT), encoding="utf-8")
        composed = load_experiment(str(file))
    machine = _machine(json.loads(store.read_text(run.run_id, ENVIRONMENT_ARTIFACT)))
    return Record(run, replace(composed, name=run.tags["mgmrn.study"]), machine)


def changes(record: Record, cell: Cell) -> list[str]:
    """Sentences about what makes the run another one here: code, data, config. None: it can be reproduced."""
    tags, found = record.run.tags, []
    if tags["mgmrn.code_digest"] != code_digest():
        sha, dirty = tags.get("mgmrn.code_sha", "none"), tags.get("mgmrn.code_dirty") == "true"
        changed = " with the uncommitted changes in its env/git.diff" if dirty else ""
        found.append(f"the code is not the one of the run (commit {sha[:12]}{changed})")
    if tags["mgmrn.data_digest"] != cell.data.digest:
        found.append(
            f"the data set is another one (digest {cell.data.digest[:12]}, was {tags['mgmrn.data_digest'][:12]})"
        )
    elif tags["mgmrn.config_hash"] != cell.config_hash:
        found.append("the pretrained weights, or what config fields mean, are not those of the run")
    return found


def inexact(record: Record, cpus_per_worker: int, gpus_per_worker: int) -> list[str]:
    """Sentences about why the same code on the same data may come to other bits. None: it must not.

    Args:
        record: of the run.
        cpus_per_worker: threads of a worker here.
        gpus_per_worker: GPUs of a worker here.
    """
    tags, found = record.run.tags, []
    if (was := tags.get("mgmrn.numerics")) != numerics():
        found.append(f"the versions are {numerics()}, were {was}")
    if record.machine != (here := _machine(environment())):
        found.append(f"the machine is {_shown(here)}, was {_shown(record.machine)}")
    if record.cpus_per_worker is None:
        found.append("the run does not say how many CPUs a worker had")
    elif (record.cpus_per_worker, record.gpus_per_worker) != (cpus_per_worker, gpus_per_worker):
        found.append(f"a worker has {cpus_per_worker} CPUs and {gpus_per_worker} GPUs, not what it had")
    if gpus_per_worker:
        found.append("GPUs add up in an order of their own")
    if record.workers.least != record.workers.most:
        found.append("the number of workers may change on the way")
    return found


def _with_weights_here(composed: ComposedConfig, data_root: Path) -> ComposedConfig:
    """A weights file is recorded by where it stood; elsewhere, one of its name below the data root is taken."""
    backbone = composed.config.model.backbone
    if not is_weights_file(backbone.weights) or Path(backbone.weights).is_file():
        return composed
    found = next(iter(sorted(data_root.rglob(Path(backbone.weights).name))), None)
    if found is None:
        return composed
    model = composed.config.model.model_copy(
        update={"backbone": backbone.model_copy(update={"weights": str(found.resolve())})}
    )
    return replace(composed, config=composed.config.model_copy(update={"model": model}))


def _machine(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: described.get(key) for key in ("cpu", "gpus")}


def _shown(machine: Mapping[str, Any]) -> str:
    return ", ".join([str(machine["cpu"]), *(machine["gpus"] or [])])


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
