"""Seconds from a fault to the next sign of life.

With `MGMRN_RECOVERY_FILE=FILE`, every figure is appended to FILE as a line of JSON: that is where the column of docs/reliability.md is from.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.ray.command import Running, wait_until


def time_recovery(fault: str, recovered: Callable[[], bool], running: Running | None = None) -> None:
    """Waits from now until something shows that all goes on. To be called when the fault is there, or what follows it has been started."""
    time_recoveries({fault: recovered}, running)


def time_recoveries(faults: Mapping[str, Callable[[], bool]], running: Running | None = None) -> None:
    """Waits as `time_recovery` does, for several faults at once."""
    start, left = time.monotonic(), dict(faults)

    def look() -> bool:
        for fault in [fault for fault, recovered in left.items() if recovered()]:
            del left[fault]
            _note(fault, time.monotonic() - start)
        return not left

    wait_until(look, f"recovered from: {', '.join(faults)}", 400, running)


def _note(fault: str, seconds: float) -> None:
    if file := os.environ.get("MGMRN_RECOVERY_FILE"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"fault": fault, "seconds": round(seconds, 1)}) + "\n")
