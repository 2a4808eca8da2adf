"""A run by what a person calls it: its id, or its name."""

from __future__ import annotations

import re

from mgmrn.errors import UserError
from pipeline.tracking.store import RUN_ID, TrackedRun, TrackingStore

_NAME = re.compile(r"[\w.+\-() ]+")


def find_run(store: TrackingStore, name: str) -> TrackedRun:
    """The run of an id, or the latest finished training run of a name.

    A `tune` and a `final` run of a config share a name; `final` goes before `tune`.

    Args:
        store: where it is tracked; all experiments of this project are looked through for a name.
        name: id or name.

    Raises:
        UserError: when no finished training run is called so.
        TrackingError: when the store is away, or has no run of that id.
    """
    if RUN_ID.fullmatch(name):
        return store.get(name)
    found: list[TrackedRun] = []
    if _NAME.fullmatch(name):
        wanted = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED' and tags.`mgmrn.kind` = 'run'"
        found = store.runs_of(("mgmrn/%",), wanted)
    if not found:
        hint = "give the run's id or name, as `train` and `compare` print them, or check --tracking-uri"
        raise UserError(f"there is no finished run called {name}", "RUN", hint)
    return max(found, key=lambda run: run.tags.get("mgmrn.split") == "final")
