"""What every benchmark returns: named timings, ratios within the run, and the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Timing:
    """Spread of one measured quantity over `n` repeats."""

    name: str
    median: float
    min: float
    max: float
    unit: str
    n: int


@dataclass(frozen=True)
class BenchReport:
    """One benchmark's figures."""

    bench: str
    environment: dict[str, str]
    results: tuple[Timing, ...]
    ratios: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """As `bench --json` prints it."""
        return {**asdict(self), "results": [asdict(timing) for timing in self.results]}


def measure(name: str, work: Callable[[], object], repeats: int) -> Timing:
    """Seconds that `work` takes, after one call that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Timing(name, statistics.median(seconds), min(seconds), max(seconds), "s", repeats)


def environment(packages: tuple[str, ...]) -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        **{package: version(package) for package in packages},
    }
