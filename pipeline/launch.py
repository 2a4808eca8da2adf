"""`train`, from the request to the outcome: what is finished is answered, what was cut off is continued, the rest is run.

Without a split each seed runs the whole honest protocol: `tune` fixes the number of epochs and γ, and `final`, with both frozen, is evaluated
once.
"""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mgmrn.data.splits import SplitData, final_data, tune_data
from mgmrn.data.xlsa17 import load_benchmark
from pipeline.analysis.runs import FIGURES, HEADLINE, prefix_of
from pipeline.analysis.tables import percent
from pipeline.analysis.views import run_view
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.console import say
from pipeline.redaction import redact_address
from pipeline.spool import Spool
from pipeline.tracking.store import NOTE_TAG, TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell, RunSummary, Status, make_cell
from pipeline.train.cluster import launch_session
from pipeline.train.placement import Placement, Workers, check_gpus, place_runs
from pipeline.train.spec import Calibration, LoggedModels, Split
from pipeline.trials.known import FINISHED, KnownRuns
from pipeline.where import Where

EXPERIMENT_NOTE = """\
Runs of `train`, folded below their launches, which hold means over the seeds. `tune` fixes the number of epochs and γ, `final` is scored once.
"""


@dataclass(frozen=True)
class TrainRequest:
    """One launch: an experiment, its seeds, and where it runs."""

    experiment: str
    composed: ComposedConfig
    split: Split | None
    """Split to run; None runs the whole protocol, `tune` and then `final`."""
    seeds: tuple[int, ...]
    workers: Workers
    where: Where
    force: bool = False
    log_model: LoggedModels = "final"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a launch."""

    status: Status
    runs: tuple[RunSummary, ...]
    parent_run_id: str | None
    tracking_uri: str
    is_tracked: bool = True

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "is_tracked"}


@dataclass(frozen=True)
class Launch:
    """Request with its data; the runs of the request are its cells."""

    request: TrainRequest
    data: Mapping[Split, SplitData]
    store: TrackingStore

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of each seed, in the order in which they are run."""
        return (self.request.split,) if self.request.split else ("tune", "final")

    def cell(self, seed: int, split: Split, calibration: Calibration | None) -> Cell:
        """One run of the request. Its variant is the experiment's name without the benchmark's, or the kind of its model."""
        composed = self.request.composed
        prefix = f"{composed.config.benchmark.name.lower()}-"
        named = composed.name.startswith(prefix)
        variant = composed.name.removeprefix(prefix) if named else composed.config.model.kind
        return make_cell(composed, seed, self.data[split], calibration, variant)

    def calibrations(self, known: KnownRuns) -> dict[int, Calibration | None]:
        runs = {seed: known.finished(self.cell(seed, "tune", None)) for seed in self.request.seeds}
        return {seed: tracked.recorded_calibration(run) for seed, run in runs.items() if run}


def run_experiment(request: TrainRequest) -> Outcome:
    """Runs the cells of a request that are not finished.

    Raises `UserError` for a bad config or data set, and `TrackingError` when the tracking store cannot be reached: nothing was started.
    Raises `ResourceError` when the cluster can never place the workers, the storage is full or read-only, or a living driver works on a run.
    """
    composed, where = request.composed, request.where.absolute()
    check_gpus(where.gpus_per_worker, request.workers.most)
    storage = where.storage
    # Paths as every host and the hash see them, the backbone's weights included.
    composed = replace(composed, config=resolve_weights(composed.config, where.data_root))
    request = replace(request, composed=composed, where=where)
    config = composed.config.benchmark
    benchmark = load_benchmark(where.data_root, config)
    # `tune` too where `final` alone is asked for, since its calibration is looked up.
    splits: dict[Split, SplitData] = {"tune": tune_data(benchmark, config)}
    if request.split != "tune":
        splits["final"] = final_data(benchmark)
    launch = Launch(request, splits, TrackingStore.connect(where.tracking_uri))
    if left := tracked.send_leftovers(storage, launch.store, tracked.END_SECONDS):
        say(str(left))
    if not request.force and (known := _all_finished(launch)):
        launch.store.close_dead_runs()
        return Outcome("cached", known, None, redact_address(where.tracking_uri))
    request.workers.check_shares(composed.config)
    data = [launch.data[split] for split in launch.splits]
    folders = [launch.cell(seed, split, None).folder(storage) for seed in request.seeds for split in launch.splits]
    with launch_session(where, request.workers.least, data, folders) as hosts:
        at_once, placement = place_runs(hosts, where, len(request.seeds), request.workers)
        view = run_view(request.split or "final", "ausuc", ("benchmark", "variant", "seed"))
        launch.store.describe(EXPERIMENT_NOTE, view)
        with tracked.parent_run(launch.store, storage, *_parent(launch), data, restart=request.force) as parent:
            summaries = _run(launch, parent, at_once, placement)
            if figures := _aggregates(summaries):
                parent.spool.append(0, figures)
                parent.note = _note(figures, launch)
            failed = any(summary.status == "failed" for summary in summaries)
            if failed:
                parent.status, parent.reason = "FAILED", "a run failed"
    # A store that was away has created the runs late.
    runs = tuple(
        one if one.status == "cached" else replace(one, run_id=spool.run_id or one.run_id)
        for one in summaries
        for spool in [Spool(storage / f"{one.name}.{one.split}")]
    )
    status: Status = "failed" if failed else "finished"
    return Outcome(status, runs, parent.run_id, redact_address(where.tracking_uri), parent.is_tracked)


def _all_finished(launch: Launch) -> tuple[RunSummary, ...] | None:
    summaries: list[RunSummary] = []
    known = KnownRuns.in_store(launch.store)
    calibrations = launch.calibrations(known)
    for seed in launch.request.seeds:
        for split in launch.splits:
            cell = launch.cell(seed, split, calibrations.get(seed) if split == "final" else None)
            run = known.finished(cell)
            if run is None:
                return None
            summaries.append(tracked.cached_summary(cell, run))
    return tuple(summaries)


def _run(launch: Launch, parent: tracked.ParentRun, at_once: int, placement: Placement) -> tuple[RunSummary, ...]:
    """Runs `tune`, then `final` with the calibration of `tune`, for each seed; a failure ends the seed, a mistake the launch."""
    # Ray Tune takes seconds to load, which a launch with nothing to do does not wait for.
    from pipeline.trials.director import Site
    from pipeline.trials.list_director import ListDirector, Task, raise_mistake, run_list

    request, restart = launch.request, launch.request.force
    tasks = []
    known: dict[int, Calibration | None] = {}
    if request.split == "final":
        known = tracked.look_up(lambda: launch.calibrations(KnownRuns.in_store(launch.store))) or {}
    for seed in request.seeds:
        if request.split == "final" and known.get(seed) is None:
            say("no finished tune run of this config: γ = 0 and all epochs, so H is not calibrated")
        first = launch.cell(seed, launch.splits[0], known.get(seed))
        final = partial(launch.cell, seed, "final") if request.split is None else None
        tasks.append(Task(first, final, restart=restart))
    opening = tracked.Opening(
        launch.store, request.where, request.experiment, parent, placement, log_model=request.log_model
    )
    known_runs = partial(KnownRuns.of_cell, launch.store, more=FINISHED)
    director = ListDirector(tasks, Site(opening, at_once), known=known_runs, on_failure=raise_mistake)
    run_list(director)
    order = [(seed, split) for seed in request.seeds for split in launch.splits]
    return tuple(sorted(director.summaries.values(), key=lambda one: order.index((one.seed, one.split))))


def _parent(launch: Launch) -> tuple[str, str, dict[str, str]]:
    request = launch.request
    cell = launch.cell(0, launch.splits[0], None)
    key = hashlib.sha256(f"{cell.group_hash} {request.split} {request.seeds}".encode()).hexdigest()[:16]
    tags = {
        "mgmrn.kind": "launch",
        "mgmrn.study": request.experiment,
        "mgmrn.benchmark": cell.data.benchmark,
        "mgmrn.group_hash": cell.group_hash,
        NOTE_TAG: request.composed.summary,
    }
    return key, f"{request.experiment} {request.split or 'tune → final'}", tags


def _aggregates(summaries: Sequence[RunSummary]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for key, value in summary.metrics.items():
            if key.startswith(("val/", "test/")):
                values.setdefault(key, []).append(value)
    means = {f"{key}/mean": statistics.fmean(found) for key, found in values.items()}
    deviations = {f"{key}/std": statistics.stdev(found) for key, found in values.items() if len(found) > 1}
    return means | deviations | {f"{key}/n": float(len(found)) for key, found in values.items()}


def _note(figures: Mapping[str, float], launch: Launch) -> str:
    """Description of the launch's own run in Markdown: means of the last split over the seeds, and the config."""
    split = launch.splits[-1]
    means = {key: figures[f"{prefix_of(split)}{key}/mean"] for key in HEADLINE}
    std = {key: figures.get(f"{prefix_of(split)}{key}/std", math.nan) for key in means}
    shown = ", ".join(f"{FIGURES[key]} {percent(mean, std[key])}" for key, mean in means.items())
    seeds = figures[f"{prefix_of(split)}gzsl_h/n"]
    return f"**{shown}** in percent on `{split}`, {seeds:.0f} seeds\n\n{launch.request.composed.summary}"
