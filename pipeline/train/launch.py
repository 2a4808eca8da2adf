"""`train`, from the request to the answer: what is finished is answered, what was cut off goes on, the rest is run.

Without a split each seed runs the whole honest protocol: `tune` fixes the number of epochs and γ, and `final`, with both frozen, is evaluated
once. This process creates and ends the runs in the tracking store; the workers know nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mgmrn.config import ExperimentConfig
from mgmrn.data.splits import check_images_exist, evaluation_images, load_final, load_tune
from mgmrn.data.xlsa17 import Benchmark, load_benchmark
from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.compose import ComposedConfig, resolve_weights
from pipeline.console import duration
from pipeline.errors import TrackingError
from pipeline.identity import config_hash, group_hash
from pipeline.tracking.environment import git_state
from pipeline.tracking.spool import EndStatus, Sender, Spool, replay_leftovers
from pipeline.tracking.store import DatasetInput, TrackedRun, TrackingStore, run_name
from pipeline.train.cluster import Placement, check_room_here, place, ray_session
from pipeline.train.failure import Failure, recorded_failure
from pipeline.train.request import Outcome, RunSummary, TrainRequest
from pipeline.train.spec import Calibration, RunSpec, Split

if TYPE_CHECKING:
    from pipeline.train.fit import Fitted

DRAIN_SECONDS = 30.0
"""How long the end of a run waits for a tracking server that is away; what is left is sent at the next start."""


@dataclass(frozen=True)
class Cell:
    """One run to be had: a seed on a split, with the calibration that it is given."""

    composed: ComposedConfig
    split: Split
    calibration: Calibration | None
    config_hash: str
    group_hash: str
    standin: bool

    @property
    def config(self) -> ExperimentConfig:
        """The science, seed included."""
        return self.composed.config

    @property
    def benchmark(self) -> str:
        """The benchmark's name, which says where drawn pictures stand in for it."""
        name = self.config.benchmark.name
        return f"{name}-standin" if self.standin else name

    @property
    def variant(self) -> str:
        """The experiment's name without the benchmark's, or the kind of its model."""
        prefix = f"{self.config.benchmark.name.lower()}-"
        name = self.composed.name
        return name.removeprefix(prefix) if name.startswith(prefix) else self.config.model.kind

    @property
    def name(self) -> str:
        """As the run is called in the tracking store."""
        return run_name(self.benchmark, self.variant, self.config.seed, self.config_hash)

    @property
    def calibration_tag(self) -> str:
        """What a `final` run was given; part of its identity."""
        return self.calibration.model_dump_json() if self.calibration else "none"

    @property
    def identity(self) -> str:
        """Names the run's science."""
        text = f"{self.config_hash} {self.split} {self.calibration_tag}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Launch:
    """What all runs of one request share."""

    request: TrainRequest
    benchmark: Benchmark
    store: TrackingStore

    def cell(self, seed: int, split: Split, calibration: Calibration | None) -> Cell:
        """One run of the request."""
        config = self.request.composed.config.model_copy(update={"seed": seed})
        return Cell(
            replace(self.request.composed, config=config),
            split,
            calibration,
            config_hash(config, self.benchmark.digest),
            group_hash(config, self.benchmark.digest),
            self.benchmark.standin,
        )


def run_experiment(request: TrainRequest) -> Outcome:
    """Runs what is asked for and not yet finished.

    Raises:
        UserError: for a bad config or data set; nothing was started.
        ResourceError: when the cluster can never place the workers.
        TrackingError: when the tracking store cannot be reached.
    """
    request = _with_found_weights(request)
    benchmark = load_benchmark(request.data_root, request.composed.config.benchmark)
    store = TrackingStore.connect(request.tracking_uri)
    launch = Launch(request, benchmark, store)
    if not request.force and (known := _all_finished(launch)):
        return Outcome("cached", known, None, request.tracking_uri)
    check_room_here(request.address, request.workers, request.cpus_per_worker)
    _check_pictures(request)
    for problem in replay_leftovers(request.storage, store, DRAIN_SECONDS):
        say(f"still waiting to be tracked: {problem}")
    with ray_session(request.address) as hosts:
        placement = place(hosts, request.workers, request.cpus_per_worker, request.gpus_per_worker)
        with _parent_run(launch) as parent:
            summaries = tuple(
                summary for seed in request.seeds for summary in _run_seed(launch, seed, parent.run_id, placement)
            )
            _log_aggregates(store, parent.run_id, summaries)
            failed = any(summary.status == "failed" for summary in summaries)
            if failed:
                parent.status, parent.reason = "FAILED", "a run failed"
    return Outcome("failed" if failed else "finished", summaries, parent.run_id, request.tracking_uri)


def say(text: str) -> None:
    """A line for the person who waits; standard output belongs to the result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _with_found_weights(request: TrainRequest) -> TrainRequest:
    """The request with the backbone's weights as an absolute path, so that every host and the hash see the same file."""
    composed = replace(request.composed, config=resolve_weights(request.composed.config, request.data_root.resolve()))
    return replace(request, composed=composed, data_root=request.data_root.resolve(), storage=request.storage.resolve())


def _check_pictures(request: TrainRequest) -> None:
    """All pictures that the request will open, before anything is started."""
    benchmark = request.composed.config.benchmark
    if request.split != "final":
        tune = load_tune(request.data_root, benchmark)
        check_images_exist(tune.train.followed_by(evaluation_images(tune)))
    if request.split != "tune":
        final = load_final(request.data_root, benchmark)
        check_images_exist(final.train.followed_by(evaluation_images(final)))


def _all_finished(launch: Launch) -> tuple[RunSummary, ...] | None:
    """The answers of earlier runs, where there is one for everything."""
    summaries: list[RunSummary] = []
    for seed in launch.request.seeds:
        calibration: Calibration | None = None
        for split in _splits(launch.request):
            if split == "final" and calibration is None:
                calibration = _known_calibration(launch, seed)
            cell = launch.cell(seed, split, calibration)
            run = _finished(launch, cell)
            if run is None:
                return None
            summaries.append(_cached_summary(cell, run))
            if split == "tune":
                calibration = Calibration.model_validate_json(run.tags["mgmrn.calibration"])
    return tuple(summaries)


def _splits(request: TrainRequest) -> tuple[Split, ...]:
    return (request.split,) if request.split else ("tune", "final")


def _known_calibration(launch: Launch, seed: int) -> Calibration | None:
    """What an earlier `tune` run of the same config and seed decided."""
    run = _finished(launch, launch.cell(seed, "tune", None))
    return Calibration.model_validate_json(run.tags["mgmrn.calibration"]) if run else None


def _finished(launch: Launch, cell: Cell) -> TrackedRun | None:
    run = launch.store.find_finished(cell.config_hash, cell.split)
    if run is None or (cell.split == "final" and run.tags.get("mgmrn.calibration") != cell.calibration_tag):
        return None
    return run


def _run_seed(launch: Launch, seed: int, parent: str, placement: Placement) -> Iterator[RunSummary]:
    """`tune`, then `final` with what it decided; a failure ends the seed."""
    calibration: Calibration | None = None
    for split in _splits(launch.request):
        if split == "final" and calibration is None:
            calibration = _known_calibration(launch, seed)
            if calibration is None:
                say("no finished tune run of this config: γ = 0 and all epochs, so H is not calibrated")
        cell = launch.cell(seed, split, calibration)
        known = None if launch.request.force else _finished(launch, cell)
        summary = _cached_summary(cell, known) if known else _run_cell(launch, cell, parent, placement)
        yield summary
        if summary.status == "failed":
            return
        if split == "tune":
            calibration = Calibration.model_validate_json(launch.store.get(summary.run_id).tags["mgmrn.calibration"])


def _run_cell(launch: Launch, cell: Cell, parent: str, placement: Placement) -> RunSummary:
    """One run: found or created, trained, recorded, ended."""
    from pipeline.train.fit import fit, forget
    from pipeline.train.record import write_record

    spec = RunSpec(
        identity=cell.identity,
        config=cell.config,
        split=cell.split,
        calibration=cell.calibration,
        data_root=launch.request.data_root,
        cache_root=places.CACHE.resolve(),
        run_folder=launch.request.storage / f"{cell.name}.{cell.split}",
        cpus_per_worker=placement.cpus_per_worker,
    )
    run_id = _open_run(launch, cell, parent, placement)
    if run_id is None:
        forget(spec)
        run_id = _create_run(launch, cell, parent, placement)
    spec.run_folder.mkdir(parents=True, exist_ok=True)
    spool = Spool(spec.spool_file)
    progress = _Progress(f"{cell.name} {cell.split}")
    sender = Sender(spool, run_id, launch.store, progress.epoch).start()
    try:
        with _notes(spec):
            ended = fit(spec, placement)
        if isinstance(ended, Failure):
            spool.append_end("FAILED", ended.reason)
            if ended.mistake:
                raise ended.mistake
            say(f"error: {cell.name} {cell.split}: {ended.message}" + (f" ({ended.hint})" if ended.hint else ""))
            return _summary(cell, run_id, "failed", None, {})
        summary = _summary(cell, run_id, "finished", ended.evaluation.result.gamma, ended.reported)
        artifacts = write_record(spec, cell.composed, launch.benchmark, ended)
        spool.append_tags(_result_tags(cell, summary, ended.calibration))
        spool.append_artifacts(artifacts)
        if cell.split == "final":
            _log_model(launch, run_id, ended)
        spool.append_end("FINISHED", "finished")
        return summary
    except KeyboardInterrupt:
        spool.append_end("KILLED", "interrupted")
        raise
    except (UserError, ResourceError):
        raise
    except Exception as error:
        spool.append_end("KILLED", type(error).__name__)
        raise
    finally:
        if problem := sender.drain(DRAIN_SECONDS):
            say(f"the tracking server is away, the rest is sent at the next start: {problem}")
        elif _never_began(spec):
            forget(spec)


def _log_model(launch: Launch, run_id: str, ended: Fitted) -> None:
    """The trained network as a model of the run; ESZSL exports none."""
    from mgmrn.checkpoint import MODEL_FILE
    from pipeline.tracking.model import log_image_model

    file = ended.checkpoint / MODEL_FILE
    if not file.exists():
        return
    benchmark = launch.benchmark
    example = benchmark.image_root / benchmark.image_files[ended.evaluation.unseen_ids[0]]
    try:
        log_image_model(launch.store, run_id, file, ended.evaluation.result.gamma, example)
    except TrackingError as error:
        say(f"the model could not be logged and stays in {file}: {error}")


def _never_began(spec: RunSpec) -> bool:
    """Whether a mistake of the user's ended the run before there was anything to keep."""
    failure = recorded_failure(spec.failure_file)
    return failure is not None and failure.mistake is not None and not any(spec.run_folder.glob("checkpoint_*"))


@contextmanager
def _notes(spec: RunSpec) -> Iterator[None]:
    from pipeline.train.notes import shown_notes

    with shown_notes(spec.notes_file, say):
        yield


def _open_run(launch: Launch, cell: Cell, parent: str, placement: Placement) -> str | None:
    """The run that a dead or interrupted driver left, taken over; None where a new one is needed."""
    if launch.request.force:
        return None
    run = launch.store.find_resumable(cell.config_hash, cell.split)
    if run is None or run.tags.get("mgmrn.run_identity") != cell.identity:
        return None
    if run.status == "FAILED" and run.tags.get("mgmrn.stop_reason") != "workers-lost":
        return None
    say(f"{cell.name} {cell.split}: going on with run {run.run_id}")
    launch.store.resume(run, parent, cell.config)
    return run.run_id


def _create_run(launch: Launch, cell: Cell, parent: str, placement: Placement) -> str:
    benchmark = launch.benchmark
    tags = {
        "mgmrn.kind": "run",
        "mgmrn.study": launch.request.experiment,
        "mgmrn.variant": cell.variant,
        "mgmrn.benchmark": benchmark.name,
        "mgmrn.seed": str(cell.config.seed),
        "mgmrn.split": cell.split,
        "mgmrn.config_hash": cell.config_hash,
        "mgmrn.group_hash": cell.group_hash,
        "mgmrn.run_identity": cell.identity,
        "mgmrn.data_digest": benchmark.digest,
        "mgmrn.standin": str(benchmark.standin).lower(),
        "mgmrn.world_size": str(placement.workers),
        "mgmrn.attempt": "1",
        "mgmrn.calibration": cell.calibration_tag,
        **git_state().tags(),
    }
    run_id = launch.store.create_child(parent, cell.name, tags, cell.config)
    counts = {"images": len(benchmark.labels), "classes": len(benchmark.class_names)}
    name = f"{benchmark.name} (stand-in)" if benchmark.standin else benchmark.name
    launch.store.log_dataset(run_id, DatasetInput(name, benchmark.digest, cell.split, counts, benchmark.standin))
    return run_id


def _result_tags(cell: Cell, summary: RunSummary, calibration: Calibration | None) -> dict[str, str]:
    """What a later launch must know of a finished run to answer in its place."""
    tags = {"mgmrn.result": json.dumps({"gamma": summary.gamma, "metrics": dict(summary.metrics)})}
    if cell.split == "tune":
        assert calibration is not None
        tags["mgmrn.calibration"] = calibration.model_dump_json()
    return tags


def _cached_summary(cell: Cell, run: TrackedRun) -> RunSummary:
    result = json.loads(run.tags["mgmrn.result"])
    return _summary(cell, run.run_id, "cached", result["gamma"], result["metrics"])


def _summary(cell: Cell, run_id: str, status: str, gamma: float | None, metrics: Mapping[str, float]) -> RunSummary:
    return RunSummary(
        run_id=run_id,
        name=cell.name,
        benchmark=cell.benchmark,
        variant=cell.variant,
        split=cell.split,
        seed=cell.config.seed,
        config_hash=cell.config_hash,
        status=status,  # type: ignore[arg-type]
        gamma=gamma,
        metrics=metrics,
    )


def _log_aggregates(store: TrackingStore, parent: str, summaries: Sequence[RunSummary]) -> None:
    """Mean, standard deviation and number over the seeds of every figure, on the launch's own run."""
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for key, value in summary.metrics.items():
            if key.startswith(("val/", "test/")):
                values.setdefault(key, []).append(value)
    aggregates = {f"{key}/mean": statistics.fmean(found) for key, found in values.items()}
    aggregates |= {f"{key}/std": statistics.stdev(found) for key, found in values.items() if len(found) > 1}
    aggregates |= {f"{key}/n": float(len(found)) for key, found in values.items()}
    try:
        if aggregates and not store.logged_steps(parent, next(iter(aggregates))):
            store.log_metrics(parent, 0, aggregates, int(time.time() * 1000))
    except TrackingError as error:
        say(f"the launch's own figures could not be tracked: {error}")


@dataclass
class _Parent:
    """The launch's own run and how it ends."""

    run_id: str
    status: EndStatus = "FINISHED"
    reason: str = "finished"


@contextmanager
def _parent_run(launch: Launch) -> Iterator[_Parent]:
    """The launch's own run; that of a dead driver's launch of the same request is taken over."""
    request, store = launch.request, launch.store
    cell = launch.cell(0, request.split or "tune", None)
    key = hashlib.sha256(f"{cell.group_hash} {request.split} {request.seeds}".encode()).hexdigest()[:16]
    left = store.find_resumable(key, "launch")
    store.close_dead_runs(keep=[left.run_id] if left else [])
    if left:
        store.reopen(left)
        parent = _Parent(left.run_id)
    else:
        tags = {
            "mgmrn.kind": "launch",
            "mgmrn.study": request.experiment,
            "mgmrn.benchmark": launch.benchmark.name,
            "mgmrn.standin": str(launch.benchmark.standin).lower(),
            "mgmrn.config_hash": key,
            "mgmrn.group_hash": cell.group_hash,
            "mgmrn.split": "launch",
            **git_state().tags(),
        }
        label = " (stand-in)" if launch.benchmark.standin else ""
        name = f"{request.experiment}{label} {request.split or 'tune → final'}"
        parent = _Parent(store.create_parent(name, tags))
    try:
        yield parent
    except KeyboardInterrupt:
        parent.status, parent.reason = "KILLED", "interrupted"
        raise
    except Exception as error:
        parent.status, parent.reason = "FAILED", type(error).__name__
        raise
    finally:
        try:
            store.finish(parent.run_id, parent.status, parent.reason)
        except TrackingError as error:
            say(f"the launch's own run could not be ended and will be at the next start: {error}")


class _Progress:
    """One line per epoch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_epoch_at: float | None = None

    def epoch(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows rank 0's view of an epoch."""
        parts = [f"{self._name}  epoch {step}/{int(numbers['epochs'])}"]
        if "train/total" in numbers:
            parts.append(f"loss {numbers['train/total']:.3f}")
        for prefix in ("val", "test"):
            if f"{prefix}/gzsl_h" in numbers:
                t1, h, area = (numbers[f"{prefix}/{key}"] for key in ("zsl_t1", "gzsl_h", "ausuc"))
                parts.append(f"{prefix} T1 {t1:.3f}  H {h:.3f}  AUSUC {area:.3f}")
        if "perf/images_per_s" in numbers:
            parts.append(f"{numbers['perf/images_per_s']:.0f} images/s")
            left = (numbers["epochs"] - step) * max(numbers["perf/epoch_s"], self._seconds_since_last_epoch())
            parts.append(f"{duration(left)} left" if left else "done")
        say("  ".join(parts))

    def _seconds_since_last_epoch(self) -> float:
        """Reporting and evaluation take time that an epoch's own clock does not see; 0 for the first."""
        now = time.monotonic()
        since = now - self._last_epoch_at if self._last_epoch_at is not None else 0.0
        self._last_epoch_at = now
        return since
