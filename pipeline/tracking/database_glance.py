"""A look into an MLflow database on this machine, without MLflow (`pipeline.tracking.glance` says why)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.tracking.store import TrackedRun

PREFIX = "sqlite:///"

LATEST_FINISHED = """
    SELECT runs.run_uuid, runs.name, runs.experiment_id FROM runs
    JOIN experiments ON experiments.experiment_id = runs.experiment_id
    JOIN tags AS config ON config.run_uuid = runs.run_uuid AND config.key = 'mgmrn.config_hash'
    JOIN tags AS split ON split.run_uuid = runs.run_uuid AND split.key = 'mgmrn.split'
    WHERE experiments.name = :experiment AND experiments.lifecycle_stage = 'active'
      AND runs.lifecycle_stage = 'active' AND runs.status = 'FINISHED'
      AND config.value = :config_hash AND split.value = :split
    ORDER BY runs.start_time DESC LIMIT 1
"""


class DatabaseGlance:
    """Finished runs of one experiment in a database file.

    Args:
        uri: `sqlite:///FILE`.
        experiment: its name.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._file = Path(uri.removeprefix(PREFIX))
        self._experiment = experiment

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest finished run of a config on a split, without its metrics."""
        if not self._file.is_file():
            return None
        wanted = {"experiment": self._experiment, "config_hash": config_hash, "split": split}
        try:
            with closing(sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=ro", uri=True)) as database:
                found = database.execute(LATEST_FINISHED, wanted).fetchone()
                if found is None:
                    return None
                run_id, name, experiment_id = found
                tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
        except sqlite3.Error:
            return None
        return TrackedRun(run_id, name or "", "FINISHED", tags, {}, str(experiment_id))
