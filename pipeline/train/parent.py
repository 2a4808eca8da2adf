"""The run that stands for a whole launch, search or grid: parent of its runs, carrier of what they came to together."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.console import say
from pipeline.driver import driver_tag
from pipeline.errors import UntrackedError
from pipeline.interruption import Interruption, unwrapped
from pipeline.job_environment import job_tags
from pipeline.spool import EndStatus, NewRun, Spool
from pipeline.tracking.environment import git_state
from pipeline.tracking.sender import Sender
from pipeline.tracking.store import DRIVER_TAG, TrackedRun, TrackingStore
from pipeline.train.request import RunSummary
from pipeline.train.tracked import END_SECONDS, send_leftovers

PREFIX = "launch."
"""Of a parent's folder in the storage."""
ONE_ATTEMPT_SECONDS = 0.5
PARENT_SPLIT = "launch"
"""Takes the place of a split in the tags of a parent, so that nobody takes it for a run."""


@dataclass
class ParentRun:
    """The parent and how it ends."""

    run_id: str
    spool: Spool
    """What it is to carry; sent at the latest when it ends."""
    status: EndStatus = "FINISHED"
    reason: str = "finished"
    is_tracked: bool = True
    """After its end: whether the store has all of the launch."""

    def attach(self, folder: Path) -> None:
        """Makes a folder's content artifacts of the run; a copy, since the folder may change before it is sent."""
        copy = self.spool.path.parent / "artifacts"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        self.spool.append_artifacts(copy)


@contextmanager
def parent_run(
    store: TrackingStore,
    storage: Path,
    key: str,
    name: str,
    tags: Mapping[str, str],
    *,
    anew: bool = False,
    again: TrackedRun | None = None,
) -> Iterator[ParentRun]:
    """A parent for as long as the context lasts; that of a dead or interrupted driver is taken over.

    Args:
        store: where it is tracked.
        storage: folder of run folders; what their spools hold is sent at the end. Where the store does not take it, that is said.
        key: what tells this parent from others; the same command gives the same key.
        name: shown in the store.
        tags: besides key and code state.
        anew: makes a new one all the same.
        again: a finished one that is gone on with.

    Raises:
        TrackingError: when the store cannot be reached at the start.
    """
    left = again or (None if anew else store.find_resumable(key, PARENT_SPLIT))
    store.close_dead_runs(keep=[left.run_id] if left else [])
    all_tags = {**tags, "mgmrn.config_hash": key, "mgmrn.split": PARENT_SPLIT, **job_tags(), **git_state().tags()}
    if left:
        store.reopen(left)
        run_id = left.run_id
    else:
        run_id = store.create_parent(name, all_tags)
    parent = ParentRun(run_id, parent_spool(storage, run_id))
    if parent.spool.new_run() is None:
        parent.spool.append_run(NewRun(name, all_tags | {DRIVER_TAG: driver_tag()}))
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
        parent.spool.append_end(parent.status, parent.reason)
        away = sender.drain(END_SECONDS) is not None
        untracked = send_leftovers(storage, store, ONE_ATTEMPT_SECONDS if away else END_SECONDS)
        parent.is_tracked = untracked is None
        if untracked and parent.reason != "untracked":
            say(f"error: {untracked}")
        _remove_ended(storage)


def parent_spool(storage: Path, run_id: str) -> Spool:
    """The spool of a launch's own run."""
    return Spool(storage / f"{PREFIX}{run_id}" / "spool.jsonl")


def aggregates(summaries: Sequence[RunSummary]) -> dict[str, float]:
    """Mean, standard deviation and number over the runs of every figure."""
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for key, value in summary.metrics.items():
            if key.startswith(("val/", "test/")):
                values.setdefault(key, []).append(value)
    means = {f"{key}/mean": statistics.fmean(found) for key, found in values.items()}
    deviations = {f"{key}/std": statistics.stdev(found) for key, found in values.items() if len(found) > 1}
    return means | deviations | {f"{key}/n": float(len(found)) for key, found in values.items()}


def _remove_ended(storage: Path) -> None:
    """The folders of launches of which all was sent."""
    for folder in storage.glob(f"{PREFIX}*"):
        if Spool(folder / "spool.jsonl").is_done():
            shutil.rmtree(folder, ignore_errors=True)
