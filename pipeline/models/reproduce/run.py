"""`reproduce`, from a run's name to the comparison with what came of it now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mgmrn.data.splits import check_images_exist, evaluation_images
from mgmrn.errors import UserError
from pipeline.config.identity import code_digest
from pipeline.console import say
from pipeline.driver import heartbeat
from pipeline.models.reproduce.record import Record, changes, inexact, read_record
from pipeline.models.reproduce.verdict import COMPARED, MetricComparison, Verdict, compare_histories, overall
from pipeline.spool import Spool
from pipeline.tracking.history import histories
from pipeline.tracking.naming import find_run
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.cluster import Placement, check_room_here, place_elastic, ray_session
from pipeline.train.launch import run_cell
from pipeline.train.parent import parent_run
from pipeline.train.storage import check_writable, explained
from pipeline.train.tracked import END_SECONDS, PATIENCE_SECONDS, Opening, send_leftovers

EXPERIMENT = "mgmrn/reproduce"
"""Reproductions stand apart, so that no launch or grid takes one for a result of its own."""
KIND = "reproduction"
VERDICT_TAG = "mgmrn.reproduction"


@dataclass(frozen=True)
class ReproduceRequest:
    """A run, and where it is run again."""

    run: str
    """Id or name."""
    anyway: bool
    """Goes on with other code, data or weights than the run's."""
    tolerance: float
    """Where the same bits cannot be expected; see `compare_histories`."""
    address: str | None
    tracking_uri: str
    data_root: Path
    storage: Path


@dataclass(frozen=True)
class Reproduction:
    """What came of it."""

    source: TrackedRun
    run_id: str | None
    """Of the reproduction."""
    metrics: tuple[MetricComparison, ...]
    verdict: Verdict | None
    """None: the run failed."""
    remarks: tuple[str, ...]
    """Why the same bits are not demanded; none where they are."""


def reproduce(request: ReproduceRequest) -> Reproduction:
    """Runs a run again: its config, seed, calibration, data and placement, with the code that is here.

    Raises:
        UserError: for a run that cannot be reproduced here; nothing was started.
        ResourceError: when the workers that it had can never be placed here.
        TrackingError: when the store cannot be reached or knows no such run.
        UntrackedError: when the store went away in mid-run.
    """
    data_root, storage = request.data_root.resolve(), request.storage.resolve() / "reproductions"
    store = TrackingStore.connect(request.tracking_uri, EXPERIMENT)
    if left := send_leftovers(storage, store, END_SECONDS):
        say(str(left))
    record = read_record(store, find_run(store, request.run))
    cell = record.cell(data_root)
    changed = changes(record, cell)
    if changed and not request.anyway:
        raise _refusal(record, changed)
    check_images_exist(cell.data.train.followed_by(evaluation_images(cell.data)))
    check_writable(storage)
    check_room_here(request.address, record.workers.least, record.cpus_per_worker)
    with explained(storage), heartbeat(storage), ray_session(request.address) as hosts:
        placement = place_elastic(hosts, record.workers, record.cpus_per_worker, record.gpus_per_worker)
        remarks = (*changed, *inexact(record, placement.cpus_per_worker, placement.gpus_per_worker))
        for remark in remarks:
            say(f"the same bits cannot be expected: {remark}")
        run_id = _not_yet_compared(store, record, cell) or _run_again(
            store, record, cell, placement, data_root, storage
        )
    return _compared(store, record, run_id, request.tolerance if remarks else None, remarks)


def _not_yet_compared(store: TrackingStore, record: Record, cell: Cell) -> str | None:
    """The id of a finished reproduction by this code whose command could not compare it, since the store was away."""
    found = store.own_runs(f"tags.`mgmrn.reproduces` = '{record.run.run_id}' and attributes.status = 'FINISHED'")
    wanted = {"mgmrn.run_identity": cell.identity, "mgmrn.code_digest": code_digest()}
    left = (run for run in found if VERDICT_TAG not in run.tags and wanted.items() <= run.tags.items())
    return next((run.run_id for run in left), None)


def _run_again(
    store: TrackingStore, record: Record, cell: Cell, placement: Placement, data_root: Path, storage: Path
) -> str | None:
    """The id of the reproduction, or none where it failed."""
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


def _compared(
    store: TrackingStore, record: Record, run_id: str | None, tolerance: float | None, remarks: tuple[str, ...]
) -> Reproduction:
    if run_id is None:
        return Reproduction(record.run, None, (), None, remarks)
    was, now = (histories(store, run, COMPARED) for run in (record.run, store.get(run_id)))
    metrics = compare_histories(was, now, tolerance)
    verdict = overall(metrics)
    store.set_tags(run_id, {VERDICT_TAG: verdict})
    return Reproduction(record.run, run_id, tuple(metrics), verdict, remarks)


def _refusal(record: Record, changed: list[str]) -> UserError:
    sha = record.run.tags.get("mgmrn.code_sha", "none")[:12]
    there = f"`git worktree add ../at-{sha} {sha}` and run the command there, or " if "code" in changed[0] else ""
    hint = f"{there}add --anyway to see whether what is here comes to the same"
    return UserError(f"{record.run.name} cannot be reproduced: {'; '.join(changed)}", "RUN", hint)
