"""The run that stands for a whole launch, search or grid: parent of its runs, carrier of what they came to together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.console import say
from pipeline.errors import TrackingError
from pipeline.jobs.driver import job_tags
from pipeline.tracking.environment import git_state
from pipeline.tracking.spool import EndStatus
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.request import RunSummary

PARENT_SPLIT = "launch"
"""Takes the place of a split in the tags of a parent, so that nobody takes it for a run."""


@dataclass
class ParentRun:
    """The parent and how it ends."""

    run_id: str
    status: EndStatus = "FINISHED"
    reason: str = "finished"


@contextmanager
def parent_run(
    store: TrackingStore,
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
    if left:
        store.reopen(left)
        parent = ParentRun(left.run_id)
    else:
        all_tags = {**tags, "mgmrn.config_hash": key, "mgmrn.split": PARENT_SPLIT, **job_tags(), **git_state().tags()}
        parent = ParentRun(store.create_parent(name, all_tags))
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


def log_aggregates(store: TrackingStore, parent_run_id: str, summaries: Sequence[RunSummary]) -> None:
    """Mean, standard deviation and number over the runs of every figure, on the parent."""
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for key, value in summary.metrics.items():
            if key.startswith(("val/", "test/")):
                values.setdefault(key, []).append(value)
    aggregates = {f"{key}/mean": statistics.fmean(found) for key, found in values.items()}
    aggregates |= {f"{key}/std": statistics.stdev(found) for key, found in values.items() if len(found) > 1}
    aggregates |= {f"{key}/n": float(len(found)) for key, found in values.items()}
    try:
        if aggregates and not store.logged_steps(parent_run_id, next(iter(aggregates))):
            store.log_metrics(parent_run_id, 0, aggregates, int(time.time() * 1000))
    except TrackingError as error:
        say(f"the launch's own figures could not be tracked: {error}")
