"""How long it takes from a fault to the next sign of life.

With `MGMRN_RECOVERY_FILE=FILE`, every figure is appended to FILE as a line of JSON: that is where the column of docs/reliability.md is from.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.ray.command import Running, wait_until


def time_recovery(fault: str, recovered: Callable[[], bool], running: Running | None = None) -> None:
    """Waits from now until something shows that all goes on. To be called when the fault is there, or what follows it has been started.

    Args:
        fault: what happened, and to which verb.
        recovered: that a further epoch was noted, say.
        running: what must not end before.
    """
    start = time.monotonic()
    wait_until(recovered, f"recovered from: {fault}", 400, running)
    if file := os.environ.get("MGMRN_RECOVERY_FILE"):
        line = json.dumps({"fault": fault, "seconds": round(time.monotonic() - start, 1)})
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
