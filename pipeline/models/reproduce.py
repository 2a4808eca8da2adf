"""Reproduction of a run from its record, and the comparison of both runs, figure by figure.

On the same machine with the same code, data and versions a run repeats itself bit for bit, so one differing bit at one step is a
difference. Elsewhere sums are taken in another order, and training amplifies the difference: then the last value of each figure on
validation or test images is compared within a tolerance, and training losses are shown without a verdict.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from mgmrn.data.splits import SplitData, check_images_exist, evaluation_images, load_final, load_tune
from mgmrn.errors import UserError
from mgmrn.weights import is_weights_file
from pipeline.config.compose import ComposedConfig, load_experiment, resolve_weights
from pipeline.config.identity import code_digest
from pipeline.console import Console, say
from pipeline.driver import heartbeat
from pipeline.spool import Spool
from pipeline.tracking.environment import environment, numerics
from pipeline.tracking.history import Histories, histories
from pipeline.tracking.naming import find_run
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import Cell, make_cell
from pipeline.train.cluster import check_room_here, ray_session
from pipeline.train.launch import run_cell
from pipeline.train.placement import Placement, Workers, parse_workers, place_elastic
from pipeline.train.spec import Split
from pipeline.train.storage import check_writable, explained
from pipeline.train.tracked import (
    END_SECONDS,
    PATIENCE_SECONDS,
    Opening,
    parent_run,
    recorded_calibration,
    send_leftovers,
)
from pipeline.where import Where

EXPERIMENT = "mgmrn/reproduce"
"""Experiment of reproductions; they have their own, so that no launch or grid takes one for a result."""
KIND = "reproduction"
VERDICT_TAG = "mgmrn.reproduction"
CONFIG_ARTIFACT = "config/resolved.yaml"
ENVIRONMENT_ARTIFACT = "env/environment.json"
SCORED = ("val/", "test/")
"""Prefixes of figures on images that the run was not trained on."""
COMPARED = ("train/", *SCORED)
"""Prefixes of metrics that follow from config, data and code; `perf/` follows from the machine."""

MetricVerdict = Literal["equal", "within tolerance", "differs", "missing", "not judged"]
Verdict = Literal["equal", "within tolerance", "differs"]

_VERDICTS = {
    "equal": "reproduced: every figure is the same to the last bit",
    "within tolerance": "reproduced within the tolerance",
    "differs": "not reproduced",
    None: "not reproduced: the run failed",
}


@dataclass(frozen=True)
class MetricComparison:
    """One metric of both runs."""

    metric: str
    was: float | None
    """Last value of the reproduced run; None without one."""
    now: float | None
    """Last value of the reproduction; None without one."""
    difference: float | None
    """Largest absolute difference over the common steps; None without a common step."""
    verdict: MetricVerdict


@dataclass(frozen=True)
class Reproduction:
    """A run, its reproduction, and their comparison."""

    source: TrackedRun
    run_id: str | None
    """Run of the reproduction; None when it failed."""
    metrics: tuple[MetricComparison, ...]
    verdict: Verdict | None
    """None when the run failed."""
    remarks: tuple[str, ...]
    """Reasons why bits may differ; without any, equal bits are demanded."""

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `reproduce --json` prints."""
        return {
            "run_id": self.source.run_id,
            "name": self.source.name,
            "reproduction_run_id": self.run_id,
            "comparison": "tolerance" if self.remarks else "bitwise",
            "remarks": list(self.remarks),
            "metrics": [asdict(one) for one in self.metrics],
            "verdict": self.verdict or "failed",
        }

    def show(self, console: Console) -> None:
        """Prints every metric, then the verdict."""

        def text(value: float | None, digits: int) -> str:
            return "–" if value is None else f"{value:.{digits}g}"

        rows = [
            [one.metric, text(one.was, 6), text(one.now, 6), text(one.difference, 2), one.verdict]
            for one in self.metrics
        ]
        if rows:
            console.table(["metric", "was", "is", "largest difference", ""], rows)
        run = f", run {self.run_id}" if self.run_id else ""
        console.line(f"{self.source.name}, run {self.source.run_id}: {_VERDICTS[self.verdict]}{run}")


@dataclass(frozen=True)
class Record:
    """A finished run and what it was made from."""

    run: TrackedRun
    composed: ComposedConfig
    """Config under the name of the run's study."""
    machine: Mapping[str, Any]
    """`cpu` and `gpus`."""

    @property
    def workers(self) -> Workers:
        """Number of workers, fixed or elastic."""
        return parse_workers(self.run.tags["mgmrn.world_size"])

    @property
    def cpus_per_worker(self) -> int | None:
        """CPUs of a worker; None if not recorded."""
        return self._number("mgmrn.cpus_per_worker")

    @property
    def gpus_per_worker(self) -> int | None:
        """GPUs of a worker; None if not recorded."""
        return self._number("mgmrn.gpus_per_worker")

    def cell(self, data_root: Path) -> Cell:
        """The same run on the data and weights below `data_root`, which its hashes are taken from.

        Raises:
            UserError: when the data set or the weights file is missing.
        """
        config = resolve_weights(_with_weights_of(self.composed, data_root).config, data_root)
        split = cast(Split, self.run.tags["mgmrn.split"])
        load = load_tune if split == "tune" else load_final
        data: SplitData = load(data_root, config.benchmark)
        calibration = recorded_calibration(self.run) if split == "final" else None
        composed = replace(self.composed, config=config)
        return make_cell(composed, config.seed, data, calibration, self.run.tags["mgmrn.variant"])

    def _number(self, tag: str) -> int | None:
        text = self.run.tags.get(tag)
        return None if text is None else int(text)


def reproduce(name: str, where: Where, *, anyway: bool, tolerance: float) -> Reproduction:
    """Repeats a run with its config, seed, calibration, data and placement, and the code of this checkout.

    Args:
        name: id or name of a finished run.
        where: cluster, tracking store and folders; the resources are those of the run.
        anyway: goes on with other code, data or weights than the run's.
        tolerance: for `compare_histories`, used where equal bits cannot be expected.

    Raises:
        UserError: for a run that cannot be reproduced here; nothing was started.
        ResourceError: when the run's workers cannot be placed here.
        TrackingError: when the store cannot be reached or does not know the run.
        UntrackedError: when the store became unreachable during the run.
    """
    where = where.absolute()
    data_root, storage = where.data_root, where.storage / "reproductions"
    store = TrackingStore.connect(where.tracking_uri, EXPERIMENT)
    if left := send_leftovers(storage, store, END_SECONDS):
        say(str(left))
    record = read_record(store, find_run(store, name))
    cell = record.cell(data_root)
    changed = changes(record, cell)
    if changed and not anyway:
        raise _refusal(record, changed)
    check_images_exist(cell.data.train.followed_by(evaluation_images(cell.data)))
    check_writable(storage)
    check_room_here(where.address, record.workers.least, record.cpus_per_worker)
    with explained(storage), heartbeat(storage), ray_session(where.address) as hosts:
        placement = place_elastic(hosts, record.workers, record.cpus_per_worker, record.gpus_per_worker)
        remarks = (*changed, *inexact(record, placement.cpus_per_worker, placement.gpus_per_worker))
        for remark in remarks:
            say(f"the same bits cannot be expected: {remark}")
        run_id = _not_yet_compared(store, record, cell)
        run_id = run_id or _run_again(store, record, cell, placement, data_root, storage)
    if run_id is None:
        return Reproduction(record.run, None, (), None, remarks)
    was, now = (histories(store, run, COMPARED) for run in (record.run, store.get(run_id)))
    metrics = compare_histories(was, now, tolerance if remarks else None)
    verdict = overall(metrics)
    store.set_tags(run_id, {VERDICT_TAG: verdict})
    return Reproduction(record.run, run_id, tuple(metrics), verdict, remarks)


def read_record(store: TrackingStore, run: TrackedRun) -> Record:
    """Reads a run's config and environment from the store.

    Raises:
        UserError: when the run is not a finished training run.
        TrackingError: when the store cannot be reached, or the run's artifacts are missing.
    """
    if run.tags.get("mgmrn.kind") != "run" or run.status != "FINISHED":
        hint = "name a run that `train` or `ablate` printed"
        raise UserError(f"{run.run_id} is no finished training run", "RUN", hint)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resolved.yaml"
        file.write_text(store.read_text(run.run_id, CONFIG_ARTIFACT), encoding="utf-8")
        composed = load_experiment(str(file))
    machine = _machine(json.loads(store.read_text(run.run_id, ENVIRONMENT_ARTIFACT)))
    return Record(run, replace(composed, name=run.tags["mgmrn.study"]), machine)


def changes(record: Record, cell: Cell) -> list[str]:
    """Sentences about code, data and config here that are not those of the run; empty when it can be reproduced."""
    tags, found = record.run.tags, []
    if tags["mgmrn.code_digest"] != code_digest():
        sha, is_dirty = tags.get("mgmrn.code_sha", "none"), tags.get("mgmrn.code_dirty") == "true"
        changed = " with the uncommitted changes in its env/git.diff" if is_dirty else ""
        found.append(f"the code is not the one of the run (commit {sha[:12]}{changed})")
    if tags["mgmrn.data_digest"] != cell.data.digest:
        found.append(
            f"the data set is another one (digest {cell.data.digest[:12]}, was {tags['mgmrn.data_digest'][:12]})"
        )
    elif tags["mgmrn.config_hash"] != cell.config_hash:
        found.append("the pretrained weights, or what config fields mean, are not those of the run")
    return found


def inexact(record: Record, cpus_per_worker: int, gpus_per_worker: int) -> list[str]:
    """Sentences about why the same code on the same data may give other bits; empty when it must give the same.

    Args:
        record: of the run.
        cpus_per_worker: threads of a worker here.
        gpus_per_worker: GPUs of a worker here.
    """
    tags, found = record.run.tags, []
    if (was := tags.get("mgmrn.numerics")) != numerics():
        found.append(f"the versions are {numerics()}, were {was}")
    if record.machine != (here := _machine(environment())):
        found.append(f"the machine is {_described(here)}, was {_described(record.machine)}")
    if record.cpus_per_worker is None:
        found.append("the run does not say how many CPUs a worker had")
    elif (record.cpus_per_worker, record.gpus_per_worker) != (cpus_per_worker, gpus_per_worker):
        found.append(f"a worker has {cpus_per_worker} CPUs and {gpus_per_worker} GPUs, not what it had")
    if gpus_per_worker:
        found.append("GPUs add up in an order of their own")
    if record.workers.least != record.workers.most:
        found.append("the number of workers may change on the way")
    return found


def compare_histories(was: Histories, now: Histories, tolerance: float | None) -> list[MetricComparison]:
    """Compares every metric of either run.

    Args:
        was: of the reproduced run.
        now: of the reproduction.
        tolerance: largest difference of a last value, absolute, or relative where the value is above 1; None demands the same
            bits at every step.
    """
    return [_compare(metric, was.get(metric, {}), now.get(metric, {}), tolerance) for metric in sorted({*was, *now})]


def overall(metrics: Sequence[MetricComparison]) -> Verdict:
    """The worst verdict; runs without any metric differ."""
    found = {one.verdict for one in metrics} - {"not judged"}
    if not found or found & {"differs", "missing"}:
        return "differs"
    return "within tolerance" if "within tolerance" in found else "equal"


def _compare(
    metric: str, was: Mapping[int, float], now: Mapping[int, float], tolerance: float | None
) -> MetricComparison:
    last_was, last_now = (one[max(one)] if one else None for one in (was, now))
    difference = max((_distance(was[step], now[step]) for step in was.keys() & now.keys()), default=None)
    verdict: MetricVerdict
    if was.keys() == now.keys() and not difference:
        verdict = "equal"
    elif tolerance is None:
        verdict = "differs" if was.keys() == now.keys() else "missing"
    elif not metric.startswith(SCORED):
        verdict = "not judged"
    elif last_was is None or last_now is None:
        verdict = "missing"
    else:
        is_near = _distance(last_was, last_now) <= tolerance * max(1.0, abs(last_was))
        verdict = "within tolerance" if is_near else "differs"
    return MetricComparison(metric, last_was, last_now, difference, verdict)


def _distance(was: float, now: float) -> float:
    """Absolute difference: 0 for the same value, also NaN or infinity; infinite where only one value is NaN or infinite."""
    if was == now or (math.isnan(was) and math.isnan(now)):
        return 0.0
    distance = abs(was - now)
    return distance if math.isfinite(distance) else math.inf


def _not_yet_compared(store: TrackingStore, record: Record, cell: Cell) -> str | None:
    """Run of a finished reproduction by this code that was not compared, because the store was unreachable at its end."""
    found = store.own_runs(f"tags.`mgmrn.reproduces` = '{record.run.run_id}' and attributes.status = 'FINISHED'")
    wanted = {"mgmrn.run_identity": cell.identity, "mgmrn.code_digest": code_digest()}
    left = (run for run in found if VERDICT_TAG not in run.tags and wanted.items() <= run.tags.items())
    return next((run.run_id for run in left), None)


def _run_again(
    store: TrackingStore, record: Record, cell: Cell, placement: Placement, data_root: Path, storage: Path
) -> str | None:
    """Trains the cell; returns the run of the reproduction, or None when it failed."""
    source = record.run
    key = hashlib.sha256(f"reproduce {source.run_id}".encode()).hexdigest()[:16]
    tags = {"mgmrn.kind": "launch", "mgmrn.study": "reproduce", "mgmrn.benchmark": cell.data.benchmark}
    spec = cell.spec(data_root, storage, placement.cpus_per_worker)
    own = {"mgmrn.kind": KIND, "mgmrn.reproduces": source.run_id}
    with parent_run(store, storage, key, f"reproduce {source.name}", tags) as parent:
        summary, _ = run_cell(store, cell, spec, Opening("reproduce", parent.run_id, placement, tags=own))
        if summary.status == "failed":
            parent.status, parent.reason = "FAILED", "the run failed"
            return None
        if left := send_leftovers(storage, store, PATIENCE_SECONDS):
            raise left
    return Spool(spec.spool_file).run_id or summary.run_id


def _refusal(record: Record, changed: list[str]) -> UserError:
    sha = record.run.tags.get("mgmrn.code_sha", "none")[:12]
    there = f"`git worktree add ../at-{sha} {sha}` and run the command there, or " if "code" in changed[0] else ""
    hint = f"{there}add --anyway to see whether what is here comes to the same"
    return UserError(f"{record.run.name} cannot be reproduced: {'; '.join(changed)}", "RUN", hint)


def _with_weights_of(composed: ComposedConfig, data_root: Path) -> ComposedConfig:
    """The config with a weights file of the recorded name below `data_root`, if the recorded path does not exist."""
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


def _described(machine: Mapping[str, Any]) -> str:
    return ", ".join([str(machine["cpu"]), *(machine["gpus"] or [])])
