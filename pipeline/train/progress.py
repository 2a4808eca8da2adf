"""One line per epoch for the person who waits."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pipeline.console import duration, say


class EpochLines:
    """Says what each epoch of a run came to.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_epoch_at: float | None = None

    def epoch(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows rank 0's view of an epoch."""
        parts = [f"{self._name}  epoch {step}/{int(numbers['epochs'])}"]
        if "train/total" in numbers:
            parts.append(f"loss {numbers['train/total']:.3f}")
        for prefix in ("val", "test"):
            if f"{prefix}/gzsl_h" in numbers:
                t1, h, area = (numbers[f"{prefix}/{key}"] for key in ("zsl_t1", "gzsl_h", "ausuc"))
                parts.append(f"{prefix} T1 {t1:.3f}  H {h:.3f}  AUSUC {area:.3f}")
        if "perf/images_per_s" in numbers:
            parts.append(f"{numbers['perf/images_per_s']:.0f} images/s")
            left = (numbers["epochs"] - step) * max(numbers["perf/epoch_s"], self._seconds_since_last_epoch())
            parts.append(f"{duration(left)} left" if left else "done")
        say("  ".join(parts))

    def _seconds_since_last_epoch(self) -> float:
        """Reporting and evaluation take time that an epoch's own clock does not see; 0 for the first."""
        now = time.monotonic()
        since = now - self._last_epoch_at if self._last_epoch_at is not None else 0.0
        self._last_epoch_at = now
        return since
