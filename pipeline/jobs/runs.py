"""Which run of the tracking store a job leads."""

from __future__ import annotations

from pipeline.job_environment import SUBMISSION_TAG
from pipeline.tracking.store import TrackingStore


def launches_of_jobs(store: TrackingStore) -> dict[str, str]:
    """Submission id → id of the launch's own run, of all jobs that got as far as to make one.

    Raises:
        TrackingError: when the store is away.
    """
    tagged = store.runs_of(("mgmrn/%",), f"tags.`{SUBMISSION_TAG}` LIKE 'mgmrn-%'")
    return {run.tags[SUBMISSION_TAG]: run.run_id for run in reversed(tagged) if run.parent_run_id is None}
