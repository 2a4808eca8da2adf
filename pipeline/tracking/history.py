"""Every value that a run has logged, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.tracking.store import TrackedRun, TrackingStore

Histories = Mapping[str, Mapping[int, float]]
"""Metric → step → value."""


def histories(store: TrackingStore, run: TrackedRun, prefixes: Sequence[str]) -> Histories:
    """The run's metrics whose names begin with one of the prefixes.

    Raises:
        TrackingError: when the store is away.
    """
    wanted = sorted(name for name in run.metrics if name.startswith(tuple(prefixes)))
    with store.translated():
        return {
            name: {one.step: one.value for one in store.client.get_metric_history(run.run_id, name)} for name in wanted
        }
