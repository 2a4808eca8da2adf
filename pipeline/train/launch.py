"""`train`, from the request to the answer: what is finished is answered, what was cut off goes on, the rest is run.

Without a split each seed runs the whole honest protocol: `tune` fixes the number of epochs and γ, and `final`, with both frozen, is evaluated
once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from mgmrn.data.splits import SplitData, check_images_exist, evaluation_images, final_data, tune_data
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import ResourceError, UserError
from pipeline.config.compose import resolve_weights
from pipeline.console import say
from pipeline.driver import heartbeat
from pipeline.interruption import Interruption
from pipeline.redaction import redact
from pipeline.spool import Spool
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell, make_cell, variant_of
from pipeline.train.claim import taken
from pipeline.train.cluster import Placement, check_room_here, place_elastic, ray_session
from pipeline.train.messages import Failure
from pipeline.train.parent import aggregates, parent_run
from pipeline.train.request import Outcome, RunSummary, TrainRequest
from pipeline.train.spec import Calibration, RunSpec, Split
from pipeline.train.storage import check_writable, explained
from pipeline.train.tracked import (
    END_SECONDS,
    EpochLines,
    Opening,
    cached_summary,
    finished_run,
    look_up,
    open_run,
    recorded_calibration,
    send_leftovers,
)


@dataclass(frozen=True)
class Launch:
    """What all runs of one request share."""

    request: TrainRequest
    data: Mapping[Split, SplitData]
    """The splits that the request runs."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """In the order in which they are run."""
        return (self.request.split,) if self.request.split else ("tune", "final")

    def cell(self, seed: int, split: Split, calibration: Calibration | None) -> Cell:
        """One run of the request."""
        composed = self.request.composed
        return make_cell(composed, seed, self.data[split], calibration, variant_of(composed))


def run_experiment(request: TrainRequest) -> Outcome:
    """Runs what is asked for and not yet finished.

    Raises:
        UserError: for a bad config or data set; nothing was started.
        ResourceError: when the cluster can never place the workers, the storage is full or read-only, or a living driver
            works on one of the runs (`TakenError`).
        TrackingError: when the tracking store cannot be reached.
    """
    request = _with_absolute_paths(request)
    launch = Launch(request, _load_splits(request))
    store = TrackingStore.connect(request.where.tracking_uri)
    if left := send_leftovers(request.where.storage, store, END_SECONDS):
        say(str(left))
    if not request.force and (known := _all_finished(launch, store)):
        store.close_dead_runs()
        return _cached(request, known)
    request.workers.check_shares(request.composed.config)
    check_writable(request.where.storage)
    check_room_here(request.where.address, request.workers.least, request.where.cpus_per_worker)
    for split in launch.splits:
        check_images_exist(launch.data[split].train.followed_by(evaluation_images(launch.data[split])))
    with (
        explained(request.where.storage),
        heartbeat(request.where.storage),
        taken(_run_folders(launch)),
        ray_session(request.where.address) as hosts,
    ):
        placement = place_elastic(hosts, request.workers, request.where.cpus_per_worker, request.where.gpus_per_worker)
        with parent_run(store, request.where.storage, *_parent(launch), anew=request.force) as parent:
            summaries = tuple(
                summary
                for seed in request.seeds
                for summary in _run_seed(launch, store, seed, parent.run_id, placement)
            )
            if figures := aggregates(summaries):
                parent.spool.append(0, figures)
            failed = any(summary.status == "failed" for summary in summaries)
            if failed:
                parent.status, parent.reason = "FAILED", "a run failed"
    summaries = tuple(_with_run_id(summary, request.where.storage) for summary in summaries)
    status: Literal["failed", "finished"] = "failed" if failed else "finished"
    return Outcome(status, summaries, parent.run_id, redact(request.where.tracking_uri), parent.is_tracked)


def _with_run_id(summary: RunSummary, storage: Path) -> RunSummary:
    """The summary with the id that its run has at the end of the launch: a store that was away creates a run late."""
    if summary.status == "cached":
        return summary
    spool = Spool(storage / f"{summary.name}.{summary.split}" / "spool.jsonl")
    return replace(summary, run_id=spool.run_id or summary.run_id)


def _run_folders(launch: Launch) -> list[Path]:
    """Folders of all runs of the launch."""
    return [
        launch.cell(seed, split, None).folder(launch.request.where.storage)
        for seed in launch.request.seeds
        for split in launch.splits
    ]


def _cached(request: TrainRequest, known: tuple[RunSummary, ...]) -> Outcome:
    return Outcome("cached", known, None, redact(request.where.tracking_uri))


def _with_absolute_paths(request: TrainRequest) -> TrainRequest:
    """The request as every host and the hash see it, the backbone's weights included."""
    composed = replace(
        request.composed, config=resolve_weights(request.composed.config, request.where.data_root.resolve())
    )
    return replace(request, composed=composed, where=request.where.absolute())


def _load_splits(request: TrainRequest) -> dict[Split, SplitData]:
    """Both splits from one reading; `tune` too where `final` alone is asked for, since its calibration is looked up."""
    config = request.composed.config.benchmark
    benchmark = load_benchmark(request.where.data_root, config)
    tune: dict[Split, SplitData] = {"tune": tune_data(benchmark, config)}
    return tune if request.split == "tune" else tune | {"final": final_data(benchmark)}


def _all_finished(launch: Launch, store: TrackingStore) -> tuple[RunSummary, ...] | None:
    """The answers of earlier runs, where there is one for everything."""
    summaries: list[RunSummary] = []
    for seed in launch.request.seeds:
        calibration: Calibration | None = None
        for split in launch.splits:
            if split == "final" and calibration is None:
                calibration = _known_calibration(launch, store, seed)
            cell = launch.cell(seed, split, calibration)
            run = finished_run(store, cell)
            if run is None:
                return None
            summaries.append(cached_summary(cell, run))
            if split == "tune":
                calibration = recorded_calibration(run)
    return tuple(summaries)


def _known_calibration(launch: Launch, store: TrackingStore, seed: int) -> Calibration | None:
    """What an earlier `tune` run of the same config and seed decided."""
    run = finished_run(store, launch.cell(seed, "tune", None))
    return recorded_calibration(run) if run else None


def _run_seed(
    launch: Launch, store: TrackingStore, seed: int, parent: str, placement: Placement
) -> Iterator[RunSummary]:
    """`tune`, then `final` with what it decided; a failure ends the seed."""
    calibration: Calibration | None = None
    for split in launch.splits:
        if split == "final" and calibration is None:
            calibration = look_up(partial(_known_calibration, launch, store, seed))
            if calibration is None:
                say("no finished tune run of this config: γ = 0 and all epochs, so H is not calibrated")
        cell = launch.cell(seed, split, calibration)
        known = None if launch.request.force else look_up(partial(finished_run, store, cell))
        if known:
            yield cached_summary(cell, known)
            decided = recorded_calibration(known)
        else:
            summary, decided = _run_cell(launch, store, cell, parent, placement)
            yield summary
            if summary.status == "failed":
                return
        if split == "tune":
            calibration = decided


def _run_cell(
    launch: Launch, store: TrackingStore, cell: Cell, parent: str, placement: Placement
) -> tuple[RunSummary, Calibration | None]:
    request = launch.request
    spec = cell.spec(request.where.data_root, request.where.storage, placement.cpus_per_worker)
    return run_cell(store, cell, spec, Opening(request.experiment, parent, placement, anew=request.force))


def run_cell(
    store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening
) -> tuple[RunSummary, Calibration | None]:
    """One run: found or created, trained, recorded, ended; what it came to, and what it decides for `final`.

    Args:
        store: where it is tracked.
        cell: what is run.
        spec: as the workers are told it.
        opening: study, parent, placement.

    Raises:
        UserError, ResourceError: when a worker met a mistake of the user's, or a machine that is too small.
    """
    from pipeline.train.fit import fit

    tracker = open_run(store, cell, spec, opening, EpochLines(f"{cell.name} {cell.split}").epoch)
    try:
        ended = fit(spec, opening.placement)
        if not isinstance(ended, Failure):
            return tracker.finished(ended), ended.calibration
        summary = tracker.failed(ended)
        if ended.mistake:
            raise ended.mistake
        say(f"error: {cell.name} {cell.split}: {ended.message}" + (f" ({ended.hint})" if ended.hint else ""))
        return summary, None
    except Interruption as interruption:
        tracker.killed(interruption.reason)
        raise
    except (UserError, ResourceError):
        raise
    except Exception as error:
        tracker.killed(type(error).__name__)
        raise
    finally:
        tracker.close()


def _parent(launch: Launch) -> tuple[str, str, dict[str, str]]:
    """Key, name and tags of the launch's own run."""
    request = launch.request
    cell = launch.cell(0, launch.splits[0], None)
    key = hashlib.sha256(f"{cell.group_hash} {request.split} {request.seeds}".encode()).hexdigest()[:16]
    tags = {
        "mgmrn.kind": "launch",
        "mgmrn.study": request.experiment,
        "mgmrn.benchmark": cell.data.benchmark,
        "mgmrn.group_hash": cell.group_hash,
    }
    return key, f"{request.experiment} {request.split or 'tune → final'}", tags
