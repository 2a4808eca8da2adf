"""What the controller of a run does when all workers have reported an epoch: notes rank 0's metrics in the run's spool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from pipeline.tracking.spool import Spool


class SpoolEpochs(UserCallback):
    """One line per epoch, at once, with no network in between.

    Args:
        path: `spool.jsonl` in the run's storage.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Called in the controller process, once per `ray.train.report` of all workers."""
        Spool(self._path).append(int(metrics[0]["epoch"]), metrics[0])
