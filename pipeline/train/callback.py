"""Callbacks of Ray Train's controller: each epoch is appended to the run's spool, and lost workers are replaced after a pause."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from pipeline.spool import Spool


class SpoolEpochs(UserCallback):
    """One line per epoch, at once, with no network in between.

    Args:
        path: `spool.jsonl` in the run's storage.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Called once per `ray.train.report` of all workers."""
        Spool(self._path).append(int(metrics[0]["epoch"]), metrics[0])


class NoHaste(UserCallback):
    """Waits before lost workers are replaced.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the controller decides what to do about the workers."""
        time.sleep(self._seconds)
