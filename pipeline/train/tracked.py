"""Tracking of runs, and of the parent run of a launch, from the driver: each is opened in the store, followed by its spool, and ended."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mgmrn.data.splits import SplitData, evaluation_images
from pipeline.analysis.runs import FIGURES, HEADLINE, prefix_of
from pipeline.claims import drop_dead_claims, release, take
from pipeline.config.compose import values_of
from pipeline.config.yaml_tree import yaml_value
from pipeline.console import duration, say
from pipeline.driver import driver_tag
from pipeline.errors import TrackingError, UntrackedError
from pipeline.interruption import Interruption, unwrapped
from pipeline.job_environment import job_tags
from pipeline.redaction import redact
from pipeline.spool import PARENT_TAG, EndStatus, NewRun, OnEpoch, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.environment import ENVIRONMENT_TAG, origin_tags, write_environment
from pipeline.tracking.sender import Sender, replay_leftovers
from pipeline.tracking.store import DRIVER_TAG, NOTE_LIMIT, NOTE_TAG, TrackedRun, TrackingStore
from pipeline.train.cell import Cell, RunSummary, datasets_of
from pipeline.train.checkpoints import kept_checkpoints
from pipeline.train.messages import Failure, recorded_failure
from pipeline.train.placement import Placement
from pipeline.train.spec import MODEL_FILE, Calibration, LoggedModels, RunSpec
from pipeline.where import Where

if TYPE_CHECKING:
    from pipeline.train.fit import Fitted

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""Seconds that a grid, at its end, waits for the tracking store, from which it reads its results."""
LOOK_UP_SECONDS = 10.0
"""Seconds that a run waits for the tracking store to say whether an earlier driver has begun or finished it."""
PAUSE_SECONDS = 2.0
DRAIN_SECONDS = 10.0
"""Seconds that the end of a run waits for a tracking store that is away; what is left is sent at the end of the launch."""
END_SECONDS = 10.0
"""Seconds that the start and the end of a launch wait for it besides; what is left then is sent by the next command."""
ONE_ATTEMPT_SECONDS = 0.5
PARENT_SPLIT = "launch"
_PARENT_PREFIX = "launch."


@dataclass(frozen=True)
class Opening:
    """Store, places, study, parent and placement with which the runs of a launch are opened, new or resumed."""

    store: TrackingStore
    where: Where
    """Absolute places; its storage holds the folders of the runs."""
    study: str
    parent: ParentRun
    placement: Placement
    restart: bool = False
    """Deletes what an earlier driver left of the run, and begins again."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Besides, or in place of, those of the cell."""
    log_model: LoggedModels = "final"

    def spec(self, cell: Cell) -> RunSpec:
        return cell.spec(self.where.data_root, self.where.storage, self.placement.cpus_per_worker, self.log_model)


class RunTracker:
    """One run in the tracking store, from `open_run` to `close`; meanwhile the notes of its workers are said."""

    def __init__(self, cell: Cell, spec: RunSpec, opening: Opening, run_id: str, on_epoch: OnEpoch) -> None:
        self.cell = cell
        self.spec = spec
        self._gpus_per_worker = opening.placement.gpus_per_worker
        self._spool = Spool(spec.run_folder)

        def tell(text: str) -> None:
            say(f"{cell.label}: {text}")

        def tell_problem(problem: str) -> None:
            tell(f"goes on, although it cannot be tracked now: {problem}")

        self._sender = Sender(self._spool, run_id, opening.store, on_epoch, tell, tell_problem).start()

    @property
    def run_id(self) -> str:
        """Id of the run; empty as long as the store is away and has not created it."""
        return self._spool.run_id

    def finished(self, ended: Fitted) -> None:
        gamma = ended.evaluation.result.gamma
        tags = {
            "mgmrn.result": json.dumps({"gamma": gamma, "metrics": ended.reported}),
            "mgmrn.checkpoint_uri": str(ended.checkpoint),
            "mgmrn.gpu_seconds": f"{self._gpus_per_worker * self._spool.worker_seconds():.1f}",
        }
        tags[NOTE_TAG] = self._note(_figures(self.cell, self.spec.epochs, ended))
        if self.cell.split == "tune":
            tags["mgmrn.calibration"] = ended.calibration.model_dump_json()
        with self.spec.artifacts_folder.filled() as folder:
            write_record(folder, self.cell, ended)
        self._spool.append_artifacts(self.spec.artifacts_folder)
        if (model := ended.checkpoint / MODEL_FILE).exists():
            picture = self.cell.data.unseen.path(0)
            example = self.spec.run_folder / f"example{picture.suffix}"
            example.write(picture.read_bytes())
            self._spool.append_model(model, gamma, example)
        self._spool.append_end("FINISHED", "finished", tags)

    def failed(self, failure: Failure) -> None:
        said = f"**{failure.message}**" + (f" ({failure.hint})" if failure.hint else "")
        self._end("FAILED", failure.reason, redact(said))

    def killed(self, reason: str) -> None:
        """Ends the run as stopped from outside; the epochs that it reported stay."""
        self._end("KILLED", reason, f"**{reason}**")

    def _end(self, status: EndStatus, reason: str, said: str) -> None:
        trained = f"after {max(self._spool.epochs(), default=0)} of {self.spec.epochs} epochs"
        self._spool.append_end(status, reason, {NOTE_TAG: self._note(f"{said} {trained}")})

    def _note(self, result: str) -> str:
        """Description of the run: how it ended, and its config."""
        return f"{result}\n\n{self.cell.composed.summary}"[:NOTE_LIMIT]

    def close(self) -> None:
        """Sends what is left, or leaves it for the end of the launch; deletes the folder of a mistake that left no checkpoint."""
        try:
            is_sent = self._sender.drain(DRAIN_SECONDS) is None
            failure = recorded_failure(self.spec.failure_file)
            if is_sent and failure and failure.mistake and not kept_checkpoints(self.spec.run_folder):
                self.spec.run_folder.delete()
        finally:
            release(self.spec.run_folder)


def _figures(cell: Cell, epochs: int, ended: Fitted) -> str:
    """Figures of a finished run, its epochs and its γ, in Markdown."""
    prefix, gamma = prefix_of(cell.split), ended.evaluation.result.gamma
    values = {FIGURES[key]: ended.reported.get(prefix + key, math.nan) for key in HEADLINE}
    figures = ", ".join(f"{symbol} {100 * value:.1f}" for symbol, value in values.items())
    images, chosen = "test", "of the `tune` run" if cell.calibration else "of no `tune` run"
    if cell.split == "tune":
        images, chosen = "validation", f"the best of {epochs}"
    return f"**{figures}** in percent on {images} images\n\nepoch {ended.epoch} and γ {gamma:.3g}, {chosen}"


def write_record(folder: Path, cell: Cell, ended: Fitted) -> None:
    """Writes the artifacts of a finished run, `eval/` and `config/`, from its checkpoint."""
    from pipeline.tracking.artifacts import write_config, write_evaluation

    images = evaluation_images(cell.data)
    files = dict(zip(images.ids.tolist(), images.files, strict=True))
    write_evaluation(folder, ended.evaluation, cell.data.classes.names, files)
    write_config(folder, cell.composed)


def open_run(cell: Cell, opening: Opening, on_epoch: OnEpoch = lambda step, numbers: None) -> RunTracker:
    """Continues the run that a dead driver left, by its folder where the store is away, or begins one; `TakenError` where another lives."""
    spec = opening.spec(cell)
    take(spec.run_folder)
    try:
        spool = Spool(spec.run_folder)
        run_id = None if opening.restart else _left_run_id(opening, cell, spool)
        if run_id is None:
            spec.run_folder.delete()
            spool = Spool(spec.run_folder)
        else:
            say(f"{cell.label}: going on with run {run_id or 'that is not tracked yet'}")
            spec.failure_file.delete()
        if spool.new_run() is None:
            own = {
                **opening.parent.origin,
                **opening.parent.link,
                DRIVER_TAG: driver_tag(),
                NOTE_TAG: cell.composed.summary,
            }
            tags = {**cell.tags(opening.study, opening.placement), **opening.tags, **own}
            names = {"variant": cell.variant, "benchmark": cell.benchmark, "split": cell.split}
            params = names | {path: yaml_value(value) for path, value in values_of(cell.config).items()}
            spool.append_run(NewRun(cell.name, tags, params, datasets_of([cell.data])))
        return RunTracker(cell, spec, opening, run_id or "", on_epoch)
    except BaseException:
        release(spec.run_folder)
        raise


def _left_run_id(opening: Opening, cell: Cell, spool: Spool) -> str | None:
    """Id of the run that an earlier driver left, resumed; empty where it is in the folder alone, None where there is none."""
    store, new = opening.store, spool.new_run()
    in_folder = new is not None and new.tags.get("mgmrn.run_identity") == cell.identity
    try:
        left = patiently(partial(store.find_resumable, cell.config_hash, cell.split), LOOK_UP_SECONDS)
        if left is not None and left.tags.get("mgmrn.run_identity") == cell.identity and left.is_cut_off:
            tags = {**opening.parent.link, NOTE_TAG: cell.composed.summary}
            patiently(partial(store.resume, left, tags), LOOK_UP_SECONDS)
            return left.run_id
        # What the store did not take yet is not removed, unless a user has deleted the run.
        in_folder = in_folder and not spool.is_done()
        in_folder = in_folder and (not spool.run_id or store.state_of(spool.run_id) != "deleted")
    except TrackingError:
        pass
    return spool.run_id if in_folder else None


def look_up(attempt: Callable[[], T]) -> T | None:
    """Asks the store; None where it stays away for `LOOK_UP_SECONDS`, so that training goes on without it."""
    try:
        return patiently(attempt, LOOK_UP_SECONDS)
    except TrackingError:
        return None


def patiently(attempt: Callable[[], T], seconds: float) -> T:
    """Repeats an attempt while the store is away. Raises `TrackingError` when it stays away for so many seconds."""
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            return attempt()
        except TrackingError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                say(f"the tracking server is away, waiting for it: {error}")
            told = True
            time.sleep(PAUSE_SECONDS)


def send_leftovers(storage: StoragePath, store: TrackingStore, patience_seconds: float) -> UntrackedError | None:
    """Sends what is left in the spools of a storage folder; returns an error for the user where the store did not take all of it."""
    problems = replay_leftovers(storage, store, patience_seconds)
    if not problems:
        return None
    runs, reason = "a run is" if len(problems) == 1 else f"{len(problems)} runs are", next(iter(problems.values()))
    hint = "mend the tracking store, then give the same command again: it sends what is left and trains nothing twice"
    return UntrackedError(f"{runs} not wholly tracked: {reason}", redact(store.uri), hint)


def recorded_calibration(run: TrackedRun) -> Calibration | None:
    """Calibration that a finished `tune` run chose, or that a `final` one was given."""
    text = run.tags["mgmrn.calibration"]
    return None if text == "none" else Calibration.model_validate_json(text)


def cached_summary(cell: Cell, run: TrackedRun) -> RunSummary:
    """Outcome of an earlier run."""
    result = json.loads(run.tags["mgmrn.result"])
    return cell.summary(run.run_id, "cached", result["gamma"], result["metrics"])


def epoch_lines(name: str) -> OnEpoch:
    """A function that says rank 0's figures of each epoch of a run, and how long the rest will take."""
    last_epoch_at = float("inf")

    def say_epoch(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal last_epoch_at
        # Reporting and evaluation take time that is no part of an epoch's own seconds.
        since, last_epoch_at = time.monotonic() - last_epoch_at, time.monotonic()
        parts = [f"{name}  epoch {step}/{int(numbers['epochs'])}"]
        if "train/total" in numbers:
            parts.append(f"loss {numbers['train/total']:.3f}")
        for prefix in ("val", "test"):
            if f"{prefix}/gzsl_h" in numbers:
                t1, h, area = (numbers[f"{prefix}/{key}"] for key in ("zsl_t1", "gzsl_h", "ausuc"))
                parts.append(f"{prefix} T1 {t1:.3f}  H {h:.3f}  AUSUC {area:.3f}")
        if "perf/images_per_s" in numbers:
            parts.append(f"{numbers['perf/images_per_s']:.0f} images/s")
            left = (numbers["epochs"] - step) * max(numbers["perf/epoch_s"], since)
            parts.append(f"{duration(left)} left" if left else "done")
        say("  ".join(parts))

    return say_epoch


@dataclass
class ParentRun:
    """Run of a whole launch, and how it ends."""

    run_id: str
    spool: Spool
    origin: Mapping[str, str]
    """Tags of the launch and its runs that say who started them, by which command and with which code."""
    status: EndStatus = "FINISHED"
    reason: str = "finished"
    is_tracked: bool = True
    """After its end: whether the store has all of the launch."""
    environment: str = ""
    """Folder of machine and git state among its artifacts."""
    note: str = ""
    """Description in Markdown, with which it ends."""

    @property
    def link(self) -> dict[str, str]:
        return {PARENT_TAG: self.run_id, ENVIRONMENT_TAG: self.environment}

    @contextmanager
    def artifacts(self) -> Iterator[Path]:
        """A folder to be filled, whose files become artifacts of the run."""
        # A folder of its own: that of an earlier launch may not be sent yet.
        folder = self.spool.folder / f"artifacts.{secrets.token_hex(4)}"
        with folder.filled() as files:
            yield files
        self.spool.append_artifacts(folder)


@contextmanager
def parent_run(
    store: TrackingStore,
    storage: StoragePath,
    key: str,
    name: str,
    tags: Mapping[str, str],
    data: Iterable[SplitData],
    *,
    restart: bool = False,
    again: TrackedRun | None = None,
) -> Iterator[ParentRun]:
    """A parent for as long as the context lasts: the finished one `again`, the one with this key that a dead driver left unless `restart`,
    or a new one. At its end the spools in `storage` are sent. Raises `TrackingError` where the store is away at the start.
    """
    left = again or (None if restart else store.find_resumable(key, PARENT_SPLIT))
    store.close_dead_runs(keep=[left.run_id] if left else [])
    drop_dead_claims(storage)
    origin = {**job_tags(), **origin_tags()}
    all_tags = {**tags, "mgmrn.config_hash": key, "mgmrn.split": PARENT_SPLIT, **origin}
    if left:
        store.reopen(left)
    run_id = left.run_id if left else store.create_parent(name, all_tags)
    parent = ParentRun(run_id, Spool(storage / f"{_PARENT_PREFIX}{run_id}"), origin)
    if parent.spool.new_run() is None:
        parent.spool.append_run(NewRun(name, all_tags | {DRIVER_TAG: driver_tag()}, datasets=datasets_of(data)))
    # Machine and git state stand here, in place of each run below.
    with parent.artifacts() as files:
        parent.environment = write_environment(files)
    sender = Sender(parent.spool, run_id, store).start()
    try:
        with unwrapped():
            yield parent
    except UntrackedError:
        parent.status, parent.reason = "KILLED", "untracked"
        raise
    except Interruption as interruption:
        parent.status, parent.reason = "KILLED", interruption.reason
        raise
    except Exception as error:
        parent.status, parent.reason = "FAILED", type(error).__name__
        raise
    finally:
        parent.spool.append_end(parent.status, parent.reason, {NOTE_TAG: parent.note} if parent.note else None)
        away = sender.drain(END_SECONDS) is not None
        untracked = send_leftovers(storage, store, ONE_ATTEMPT_SECONDS if away else END_SECONDS)
        parent.is_tracked = untracked is None
        if untracked and parent.reason != "untracked":
            say(f"error: {untracked}")
        for name in storage.names():
            if name.startswith(_PARENT_PREFIX) and Spool(storage / name).is_done():
                (storage / name).delete()
