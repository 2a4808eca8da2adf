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
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pipeline.console import say
from pipeline.errors import TrackingError
from pipeline.tracking.spool import OnEpoch, Sender, Spool, replay_leftovers
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.claim import release, take
from pipeline.train.cluster import Placement
from pipeline.train.failure import Failure, recorded_failure
from pipeline.train.notes import shown_notes
from pipeline.train.request import RunSummary
from pipeline.train.spec import Calibration, RunSpec

if TYPE_CHECKING:
    from pipeline.train.fit import Fitted

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""How long what cannot go on without the tracking server waits for it, such as a run that is to be opened."""
PAUSE_SECONDS = 5.0
DRAIN_SECONDS = 30.0
"""How long the end of a run waits for a tracking server that is away; what is left is sent at the end of the launch."""
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
        self.run_id = run_id
        self._gpus_per_worker = gpus_per_worker
        self._spool = Spool(spec.spool_file)
        self._sender = Sender(self._spool, run_id, store, on_epoch).start()
        self._notes = ExitStack()
        self._notes.enter_context(
            shown_notes(spec.notes_file, lambda sentence: say(f"{cell.name} {cell.split}: {sentence}"))
        )

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
        """Sends what is left, or says that it will be sent later, and gives up the run's folder; a run that never began leaves nothing."""
        try:
            self._close()
        finally:
            release(self.spec.run_folder)

    def _close(self) -> None:
        self._notes.close()
        if problem := self._sender.drain(DRAIN_SECONDS):
            say(f"the tracking server is away, the rest is sent later: {problem}")
        elif _never_began(self.spec):
            forget(self.spec)

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
    """Takes over the run that a dead or interrupted driver left, or makes a new one in an empty folder.

    Args:
        store: where it is tracked.
        cell: what is run.
        spec: as the workers are told it.
        opening: study, parent, placement.
        on_epoch: told of every epoch at once.

    Raises:
        TakenError: when a living driver works on the run; nothing was touched.
        TrackingError: when the store stays away for `PATIENCE_SECONDS`.
    """
    take(spec.run_folder)
    try:
        return _open(store, cell, spec, opening, on_epoch)
    except BaseException:
        release(spec.run_folder)
        raise


def _open(store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening, on_epoch: OnEpoch) -> RunTracker:
    run_id = patiently(lambda: _opened(store, cell, spec, opening))
    spec.run_folder.mkdir(parents=True, exist_ok=True)
    return RunTracker(store, cell, spec, run_id, opening.placement.gpus_per_worker, on_epoch)


def _opened(store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening) -> str:
    left = None if opening.anew else _left_run(store, cell)
    if left:
        say(f"{cell.name} {cell.split}: going on with run {left.run_id}")
        store.resume(left, opening.parent_run_id, cell.config)
        spec.failure_file.unlink(missing_ok=True)
        return left.run_id
    forget(spec)
    tags = {**cell.tags(opening.study, opening.placement), **opening.tags}
    run_id = store.create_child(opening.parent_run_id, cell.name, tags, cell.config)
    store.log_dataset(run_id, cell.dataset)
    return run_id


def patiently(attempt: Callable[[], T]) -> T:
    """Tries again while the store is away: in the middle of a launch or a search it is worth waiting for.

    Raises:
        TrackingError: when the store stays away for `PATIENCE_SECONDS`.
    """
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
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


def send_leftovers(storage: Path, store: TrackingStore, patience_seconds: float) -> None:
    """Sends what is left in the spools of a storage folder, and says what has to wait still."""
    for problem in replay_leftovers(storage, store, patience_seconds):
        say(f"still waiting to be tracked, sent by the next command: {problem}")


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
