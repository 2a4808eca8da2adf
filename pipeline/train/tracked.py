"""The driver's side of one run: opened in the tracking store, followed while it trains, and ended with what it came to.

Workers know nothing of the store: the controller notes epochs in the run's spool, and what is noted is sent from here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pipeline.config.compose import values_of
from pipeline.config.yaml_tree import yaml_value
from pipeline.console import duration, say
from pipeline.driver import driver_tag
from pipeline.errors import TrackingError, UntrackedError
from pipeline.redaction import redact
from pipeline.spool import PARENT_TAG, NewRun, OnEpoch, Spool
from pipeline.tracking.sender import Sender, replay_leftovers
from pipeline.tracking.store import DRIVER_TAG, TrackedRun, TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.claim import release, take
from pipeline.train.cluster import Placement
from pipeline.train.messages import Failure, recorded_failure, shown_notes
from pipeline.train.request import RunSummary
from pipeline.train.spec import Calibration, RunSpec

if TYPE_CHECKING:
    from pipeline.train.fit import Fitted

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long a grid that has ended waits for the tracking store, from which it reads what it came to."""
LOOK_UP_SECONDS = 10.0
"""How long a run waits for the tracking store to say whether an earlier driver has begun or finished it."""
PAUSE_SECONDS = 2.0
DRAIN_SECONDS = 10.0
"""How long the end of a run waits for a tracking store that is away; what is left is sent at the end of the launch."""
END_SECONDS = 10.0
"""How long the start and the end of a launch wait for it besides; what is left then is sent by the next command."""


@dataclass(frozen=True)
class Opening:
    """What a new or resumed run is opened with, besides its cell."""

    study: str
    parent_run_id: str
    placement: Placement
    anew: bool = False
    """Leaves what an earlier driver left, and starts again."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Besides, or in place of, those of the cell."""


class RunTracker:
    """One run in the tracking store, from `open_run` to `close`; meanwhile the person at the driver reads what its workers note."""

    def __init__(
        self, store: TrackingStore, cell: Cell, spec: RunSpec, run_id: str, gpus_per_worker: int, on_epoch: OnEpoch
    ) -> None:
        self.cell = cell
        self.spec = spec
        self._gpus_per_worker = gpus_per_worker
        self._spool = Spool(spec.spool_file)
        self._sender = Sender(self._spool, run_id, store, on_epoch, self._say_problem).start()
        self._notes = ExitStack()
        self._notes.enter_context(
            shown_notes(spec.notes_file, lambda sentence: say(f"{cell.name} {cell.split}: {sentence}"))
        )

    @property
    def run_id(self) -> str:
        """Id of the run; empty as long as the store is away and has not created it."""
        return self._spool.run_id

    def finished(self, ended: Fitted) -> RunSummary:
        """Records figures, tables and plots, and on `final` the model."""
        from pipeline.train.record import write_record

        summary = summarise(self.cell, self.run_id, "finished", ended.evaluation.result.gamma, ended.reported)
        tags = {
            "mgmrn.result": json.dumps({"gamma": summary.gamma, "metrics": dict(summary.metrics)}),
            "mgmrn.checkpoint_uri": str(ended.checkpoint),
            "mgmrn.gpu_seconds": f"{self._gpus_per_worker * self._spool.worker_seconds():.1f}",
        }
        if self.cell.split == "tune":
            tags["mgmrn.calibration"] = ended.calibration.model_dump_json()
        artifacts = write_record(self.spec, self.cell, ended)
        self._spool.append_tags(tags)
        self._spool.append_artifacts(artifacts)
        if self.cell.split == "final":
            self._append_model(ended)
        self._spool.append_end("FINISHED", "finished")
        return summary

    def failed(self, failure: Failure) -> RunSummary:
        """Ends the run as failed, with the reason."""
        self._spool.append_end("FAILED", failure.reason)
        return summarise(self.cell, self.run_id, "failed", None, {})

    def killed(self, reason: str) -> None:
        """Ends the run as stopped from outside; what it had reported stays."""
        self._spool.append_end("KILLED", reason)

    def close(self) -> None:
        """Sends what is left, or leaves it for the end of the launch, and gives up the run's folder; a run that never began leaves nothing."""
        try:
            self._close()
        finally:
            release(self.spec.run_folder)

    def _close(self) -> None:
        self._notes.close()
        if self._sender.drain(DRAIN_SECONDS) is None and _never_began(self.spec):
            forget(self.spec)

    def _say_problem(self, problem: str) -> None:
        say(f"{self.cell.name} {self.cell.split}: goes on, although it cannot be tracked now: {problem}")

    def _append_model(self, ended: Fitted) -> None:
        """The trained network as a model of the run; ESZSL exports none."""
        from mgmrn.checkpoint import MODEL_FILE

        file = ended.checkpoint / MODEL_FILE
        if not file.exists():
            return
        picture = self.cell.data.unseen.path(0)
        example = self.spec.run_folder / f"example{picture.suffix}"
        shutil.copyfile(picture, example)
        self._spool.append_model(file, ended.evaluation.result.gamma, example)


def open_run(
    store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening, on_epoch: OnEpoch = lambda step, numbers: None
) -> RunTracker:
    """Takes over the run that a dead or interrupted driver left, or begins a new one in an empty folder.

    A store that is away does not hold it up: what the run folder holds is then taken over, and a new run is created when the
    store is back.

    Args:
        store: where it is tracked.
        cell: what is run.
        spec: as the workers are told it.
        opening: study, parent, placement.
        on_epoch: told of every epoch at once.

    Raises:
        TakenError: when a living driver works on the run; nothing was touched.
    """
    take(spec.run_folder)
    try:
        return _open(store, cell, spec, opening, on_epoch)
    except BaseException:
        release(spec.run_folder)
        raise


def _open(store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening, on_epoch: OnEpoch) -> RunTracker:
    spool = Spool(spec.spool_file)
    run_id = None if opening.anew else _left_run_id(store, cell, spool, opening.parent_run_id)
    if run_id is None:
        forget(spec)
    else:
        say(f"{cell.name} {cell.split}: going on with run {run_id or 'that is not tracked yet'}")
        spec.failure_file.unlink(missing_ok=True)
    if spool.new_run() is None:
        spool.append_run(_new_run(cell, opening))
    return RunTracker(store, cell, spec, run_id or "", opening.placement.gpus_per_worker, on_epoch)


def _left_run_id(store: TrackingStore, cell: Cell, spool: Spool, parent_run_id: str) -> str | None:
    """Id of the run that an earlier driver left, resumed; empty where it is in the folder alone, None where there is none."""
    new = spool.new_run()
    in_folder = new is not None and new.tags.get("mgmrn.run_identity") == cell.identity
    try:
        left = patiently(partial(_left_run, store, cell), LOOK_UP_SECONDS)
        if left is not None:
            patiently(partial(store.resume, left, parent_run_id), LOOK_UP_SECONDS)
            return left.run_id
        # What the store did not take yet is not removed, unless a user has deleted the run.
        in_folder = in_folder and not spool.is_done() and _is_wanted(store, spool.run_id)
    except TrackingError:
        pass
    return spool.run_id if in_folder else None


def _is_wanted(store: TrackingStore, run_id: str) -> bool:
    return not run_id or store.state_of(run_id) != "deleted"


def _new_run(cell: Cell, opening: Opening) -> NewRun:
    tags = {
        **cell.tags(opening.study, opening.placement),
        **opening.tags,
        PARENT_TAG: opening.parent_run_id,
        DRIVER_TAG: driver_tag(),
    }
    params = {path: yaml_value(value) for path, value in values_of(cell.config).items()}
    return NewRun(cell.name, tags, params, cell.dataset)


def look_up(attempt: Callable[[], T]) -> T | None:
    """Asks the store; None where it stays away for `LOOK_UP_SECONDS`, so that training goes on without it."""
    try:
        return patiently(attempt, LOOK_UP_SECONDS)
    except TrackingError:
        return None


def patiently(attempt: Callable[[], T], seconds: float) -> T:
    """Tries again while the store is away.

    Raises:
        TrackingError: when it stays away for so many seconds.
    """
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


def send_leftovers(storage: Path, store: TrackingStore, patience_seconds: float) -> UntrackedError | None:
    """Sends what is left in the spools of a storage folder.

    Returns:
        What to tell the user where the store did not take all of it.
    """
    problems = replay_leftovers(storage, store, patience_seconds)
    if not problems:
        return None
    runs, reason = "a run is" if len(problems) == 1 else f"{len(problems)} runs are", next(iter(problems.values()))
    hint = "mend the tracking store, then give the same command again: it sends what is left and trains nothing twice"
    return UntrackedError(f"{runs} not wholly tracked: {reason}", redact(store.uri), hint)


def forget(spec: RunSpec) -> None:
    """Removes all that is stored of a run, so that the next fit starts anew."""
    shutil.rmtree(spec.run_folder, ignore_errors=True)


def finished_run(store: TrackingStore, cell: Cell) -> TrackedRun | None:
    """The latest finished run of exactly this cell."""
    run = store.find_finished(cell.config_hash, cell.split)
    if run is None or (cell.split == "final" and run.tags.get("mgmrn.calibration") != cell.calibration_tag):
        return None
    return run


def recorded_calibration(run: TrackedRun) -> Calibration | None:
    """What a finished `tune` run decided, or a `final` one was given."""
    text = run.tags["mgmrn.calibration"]
    return None if text == "none" else Calibration.model_validate_json(text)


def cached_summary(cell: Cell, run: TrackedRun) -> RunSummary:
    """The answer of an earlier run."""
    result = json.loads(run.tags["mgmrn.result"])
    return summarise(cell, run.run_id, "cached", result["gamma"], result["metrics"])


def summarise(
    cell: Cell,
    run_id: str,
    status: Literal["finished", "cached", "failed", "stopped"],
    gamma: float | None,
    metrics: Mapping[str, float],
) -> RunSummary:
    """What a run came to."""
    return RunSummary(
        run_id=run_id,
        name=cell.name,
        benchmark=cell.benchmark,
        variant=cell.variant,
        split=cell.split,
        seed=cell.config.seed,
        config_hash=cell.config_hash,
        status=status,
        gamma=gamma,
        metrics=metrics,
    )


def _left_run(store: TrackingStore, cell: Cell) -> TrackedRun | None:
    run = store.find_resumable(cell.config_hash, cell.split)
    if run is None or run.tags.get("mgmrn.run_identity") != cell.identity:
        return None
    return run if run.is_cut_off else None


def _never_began(spec: RunSpec) -> bool:
    """Whether a mistake of the user's ended the run before there was anything to keep."""
    failure = recorded_failure(spec.failure_file)
    return failure is not None and failure.mistake is not None and not any(spec.run_folder.glob("checkpoint_*"))


class EpochLines:
    """Says what each epoch of a run came to.

    Args:
        name: of the run.
    """

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
