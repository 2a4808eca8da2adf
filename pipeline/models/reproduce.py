"""Reproduction of a run from its record, and the comparison of both runs, figure by figure.

On the same machine with the same code, data and versions a run repeats itself bit for bit. Elsewhere the last value of each figure on
validation or test images is compared within a tolerance, and training losses are shown without a verdict.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from mgmrn.data.splits import load_final, load_tune
from mgmrn.errors import UserError
from mgmrn.weights import is_weights_file
from pipeline.config.compose import ComposedConfig, load_experiment, resolve_weights
from pipeline.config.identity import code_digest
from pipeline.console import Console, say
from pipeline.spool import Spool
from pipeline.tracking.environment import ENVIRONMENT_TAG, environment, numerics
from pipeline.tracking.store import Histories, TrackedRun, TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell, make_cell
from pipeline.train.cluster import launch_session
from pipeline.train.placement import Placement, Workers, parse_workers, place_elastic
from pipeline.train.spec import Split
from pipeline.trials.known import KnownRuns
from pipeline.where import Where

EXPERIMENT = "mgmrn/reproduce"
"""Experiment of reproductions, so that no launch or grid takes one for a result."""
KIND = "reproduction"
VERDICT_TAG = "mgmrn.reproduction"
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
    """One metric: last values of both runs, largest absolute difference over their common steps, verdict."""

    metric: str
    was: float | None
    now: float | None
    difference: float | None
    verdict: MetricVerdict


@dataclass(frozen=True)
class Reproduction:
    """A run, its reproduction (without run and verdict if it failed), and their comparison."""

    source: TrackedRun
    remarks: tuple[str, ...]
    """Reasons why bits may differ; without any, equal bits are demanded."""
    run_id: str | None = None
    metrics: tuple[MetricComparison, ...] = ()
    verdict: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
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
        def text(value: float | None, digits: int) -> str:
            return "–" if value is None else f"{value:.{digits}g}"

        rows = [[x.metric, text(x.was, 6), text(x.now, 6), text(x.difference, 2), x.verdict] for x in self.metrics]
        if rows:
            console.table(["metric", "was", "is", "largest difference", ""], rows)
        run = f", run {self.run_id}" if self.run_id else ""
        console.line(f"{self.source.name}, run {self.source.run_id}: {_VERDICTS[self.verdict]}{run}")


@dataclass(frozen=True)
class Record:
    """A finished run, its config and its machine."""

    run: TrackedRun
    composed: ComposedConfig
    """Config under the name of the run's study."""
    machine: str

    @property
    def workers(self) -> Workers:
        return parse_workers(self.run.tags["mgmrn.world_size"])

    @property
    def cpus_per_worker(self) -> int | None:
        """None if not recorded."""
        return int(self.run.tags.get("mgmrn.cpus_per_worker", 0)) or None

    @property
    def gpus_per_worker(self) -> float | None:
        """None if not recorded."""
        text = self.run.tags.get("mgmrn.gpus_per_worker")
        return None if text is None else float(text)

    def cell(self, data_root: Path) -> Cell:
        """The same run on the data and weights below `data_root`, from which its hashes are computed."""
        config = resolve_weights(self.composed.config, data_root)
        split = cast(Split, self.run.tags["mgmrn.split"])
        data = (load_tune if split == "tune" else load_final)(data_root, config.benchmark)
        calibration = tracked.recorded_calibration(self.run) if split == "final" else None
        composed = replace(self.composed, config=config)
        return make_cell(composed, config.seed, data, calibration, self.run.tags["mgmrn.variant"])


def reproduce(name: str, where: Where, *, anyway: bool, tolerance: float) -> Reproduction:
    """Repeat a run (id or name) with its config, seed, calibration, data and placement, and the code of this checkout.

    `anyway` accepts other code, data or weights than the run's; `tolerance` applies where equal bits cannot be expected. Raises `UserError`
    for a run that cannot be reproduced here, `TrackingError` when the store is unreachable or does not know it, `ResourceError` when its
    workers cannot be placed here: nothing was started. Raises `UntrackedError` when the store went away later.
    """
    where = where.absolute()
    where = replace(where, storage=where.storage / "reproductions")
    store = TrackingStore.open(where.tracking_uri)
    record = read_record(store, store.find_run(name), where.data_root)
    cell = record.cell(where.data_root)
    changed = changes(record, cell)
    if changed and not anyway:
        sha = record.run.tags.get("mgmrn.code_sha", "none")[:12]
        there = f"`git worktree add ../at-{sha} {sha}` and run the command there, or " if "code" in changed[0] else ""
        hint = f"{there}add --anyway to compare with the code and data here"
        raise UserError(f"{record.run.name} cannot be reproduced: {'; '.join(changed)}", "RUN", hint)
    store = TrackingStore.connect(where.tracking_uri, EXPERIMENT)
    if left := tracked.send_leftovers(where.storage, store, tracked.END_SECONDS):
        say(str(left))
    where = replace(where, cpus_per_worker=record.cpus_per_worker)
    with launch_session(where, record.workers.least, [cell.data]) as hosts:
        placement = place_elastic(hosts, record.workers, where.cpus_per_worker, record.gpus_per_worker)
        remarks = (*changed, *inexact(record, placement.cpus_per_worker, placement.gpus_per_worker))
        for remark in remarks:
            say(f"the same bits cannot be expected: {remark}")
        run_id = _not_yet_compared(store, record, cell)
        run_id = run_id or _run_again(store, where, record, cell, placement)
    if run_id is None:
        return Reproduction(record.run, remarks)
    was, now = (store.histories(run, COMPARED) for run in (record.run, store.get(run_id)))
    metrics = compare_histories(was, now, tolerance if remarks else None)
    verdict = overall(metrics)
    store.set_tags(run_id, {VERDICT_TAG: verdict})
    return Reproduction(record.run, remarks, run_id, tuple(metrics), verdict)


def read_record(store: TrackingStore, run: TrackedRun, data_root: Path) -> Record:
    """Read a finished training run from the store; a weights file that does not exist is replaced by one of its name below `data_root`."""
    run.check_finished_training()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resolved.yaml"
        file.write_text(store.read_text(run.run_id, "config/resolved.yaml"), encoding="utf-8")
        composed = load_experiment(str(file))
        weights = Path(composed.config.model.backbone.weights)
        if is_weights_file(str(weights)) and not weights.is_file():
            for found in sorted(data_root.rglob(weights.name))[:1]:
                composed = load_experiment(str(file), [f"model.backbone.weights={json.dumps(str(found.resolve()))}"])
    # Runs of earlier versions have an environment of their own.
    owner, path = run.run_id, "env"
    if ENVIRONMENT_TAG in run.tags and run.parent_run_id:
        owner, path = run.parent_run_id, run.tags[ENVIRONMENT_TAG]
    machine = _machine(json.loads(store.read_text(owner, f"{path}/environment.json")))
    return Record(run, replace(composed, name=run.tags["mgmrn.study"]), machine)


def changes(record: Record, cell: Cell) -> list[str]:
    """Sentences about code, data and config here that are not those of the run; empty when it can be reproduced."""
    tags, found = record.run.tags, []
    if tags["mgmrn.code_digest"] != code_digest():
        sha, is_dirty = tags.get("mgmrn.code_sha", "none"), tags.get("mgmrn.code_dirty") == "true"
        diff = f"{tags.get(ENVIRONMENT_TAG, 'env')}/git.diff"
        changed = f" with the uncommitted changes in {diff} of its launch" if is_dirty else ""
        found.append(f"the code is not the one of the run (commit {sha[:12]}{changed})")
    was, now = tags["mgmrn.data_digest"], cell.data.digest
    if was != now:
        found.append(f"the data set is another one (digest {now[:12]}, was {was[:12]})")
    elif tags["mgmrn.config_hash"] != cell.config_hash:
        found.append("the pretrained weights, or what config fields mean, are not those of the run")
    return found


def inexact(record: Record, cpus_per_worker: int, gpus_per_worker: float) -> list[str]:
    """Reasons why the same code on the same data may give other bits with these CPUs and GPUs of a worker; empty without any."""
    found = []
    now = numerics(record.composed.config)
    if (was := record.run.tags.get("mgmrn.numerics")) != now:
        found.append(f"the versions are {now}, were {was}")
    if record.machine != (here := _machine(environment())):
        found.append(f"the machine is {here}, was {record.machine}")
    recorded = record.cpus_per_worker, record.gpus_per_worker
    if recorded[0] is None:
        found.append("the run does not say how many CPUs a worker had")
    elif recorded != (cpus_per_worker, gpus_per_worker):
        found.append(f"a worker has {cpus_per_worker} CPUs and {gpus_per_worker:g} GPUs, not what it had")
    if gpus_per_worker:
        found.append("GPUs add up in an order of their own")
    if record.workers.least != record.workers.most:
        found.append("the number of workers may change on the way")
    return found


def compare_histories(was: Histories, now: Histories, tolerance: float | None) -> list[MetricComparison]:
    """Compare every metric by the largest difference of last values, relative above 1; without a tolerance, by the bits of every step."""
    return [_compare(name, was.get(name, {}), now.get(name, {}), tolerance) for name in sorted({*was, *now})]


def overall(metrics: Sequence[MetricComparison]) -> Verdict:
    """The worst verdict; runs without any metric differ."""
    found = {one.verdict for one in metrics} - {"not judged"}
    if not found or found & {"differs", "missing"}:
        return "differs"
    return "within tolerance" if "within tolerance" in found else "equal"


def _compare(
    name: str, was: Mapping[int, float], now: Mapping[int, float], tolerance: float | None
) -> MetricComparison:
    last_was, last_now = (one[max(one)] if one else None for one in (was, now))
    difference = max((_distance(was[step], now[step]) for step in was.keys() & now.keys()), default=None)
    has_same_steps = was.keys() == now.keys()
    verdict: MetricVerdict
    if has_same_steps and not difference:
        verdict = "equal"
    elif tolerance is None:
        verdict = "differs" if has_same_steps else "missing"
    elif not name.startswith(SCORED):
        verdict = "not judged"
    elif last_was is None or last_now is None:
        verdict = "missing"
    else:
        is_near = _distance(last_was, last_now) <= tolerance * max(1.0, abs(last_was))
        verdict = "within tolerance" if is_near else "differs"
    return MetricComparison(name, last_was, last_now, difference, verdict)


def _distance(was: float, now: float) -> float:
    """Absolute difference: 0 for the same value, also NaN or infinity; infinite where only one value is NaN or infinite."""
    if was == now or (math.isnan(was) and math.isnan(now)):
        return 0.0
    return abs(was - now) if math.isfinite(was - now) else math.inf


def _not_yet_compared(store: TrackingStore, record: Record, cell: Cell) -> str | None:
    """Run of a finished reproduction by this code that was not compared, because the store was unreachable at its end."""
    found = store.own_runs(f"tags.`mgmrn.reproduces` = '{record.run.run_id}' and attributes.status = 'FINISHED'")
    wanted = {"mgmrn.run_identity": cell.identity, "mgmrn.code_digest": code_digest()}
    left = (run for run in found if VERDICT_TAG not in run.tags and wanted.items() <= run.tags.items())
    return next((run.run_id for run in left), None)


def _run_again(store: TrackingStore, where: Where, record: Record, cell: Cell, placement: Placement) -> str | None:
    from pipeline.trials.director import Site
    from pipeline.trials.list_director import ListDirector, Task, raise_mistake, run_list

    source = record.run
    key = hashlib.sha256(f"reproduce {source.run_id}".encode()).hexdigest()[:16]
    tags = {"mgmrn.kind": "launch", "mgmrn.study": "reproduce", "mgmrn.benchmark": cell.data.benchmark}
    own = {"mgmrn.kind": KIND, "mgmrn.reproduces": source.run_id}
    with tracked.parent_run(store, where.storage, key, f"reproduce {source.name}", tags, [cell.data]) as parent:
        opening = tracked.Opening(store, where, "reproduce", parent, placement, tags=own, log_model="none")
        nothing = KnownRuns.among([], store.experiment_id)
        director = ListDirector([Task(cell)], Site(opening, 1), known=lambda _: nothing, on_failure=raise_mistake)
        run_list(director)
        if director.summaries[cell.identity].status == "failed":
            parent.status, parent.reason = "FAILED", "the run failed"
            return None
        if left := tracked.send_leftovers(where.storage, store, tracked.PATIENCE_SECONDS):
            raise left
    return Spool(opening.spec(cell).run_folder).run_id


def _machine(described: Mapping[str, Any]) -> str:
    return ", ".join([str(described.get("cpu")), *(described.get("gpus") or [])])
