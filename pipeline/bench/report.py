"""What every benchmark returns: named timings, ratios within the run, and the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
class BenchTable:
    """Figures that belong together."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BenchReport:
    """One benchmark's figures."""

    bench: str
    environment: dict[str, str]
    results: tuple[Timing, ...]
    ratios: dict[str, float]
    notes: tuple[str, ...] = ()
    """What a reader must know besides: sizes, and what could not be measured here."""
    tables: tuple[BenchTable, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `bench --json` prints it."""
        return {**asdict(self), "results": [asdict(timing) for timing in self.results], "notes": list(self.notes)}


def measure(name: str, work: Callable[[], object], repeats: int) -> Timing:
    """Seconds that `work` takes, after one call that does not count."""
    work()
    return spread(name, [seconds_of(work) for _ in range(repeats)], "s")


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(name: str, values: Sequence[float], unit: str) -> Timing:
    """Median, smallest and largest of repeats."""
    return Timing(name, statistics.median(values), min(values), max(values), unit, len(values))


def in_turn(
    works: Mapping[str, Callable[[], object]], repeats: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, list[float]]:
    """Seconds of each kind of work, one after the other round by round, so that a machine that slows down slows all of them.

    Nothing is called beforehand: what the first call pays for (compilation, first allocations) is the caller's to have paid.

    Args:
        works: what is timed, by name.
        repeats: rounds.
        progress: told of each round, of which some take a minute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
        found = ", ".join(f"{name} {measured[-1]:.3g} s" for name, measured in seconds.items())
        progress(f"round {number + 1} of {repeats}: {found}")
    return seconds


def rounds_ratio(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> Timing:
    """Spread of the ratio of two quantities that were measured in the same rounds."""
    return spread(name, [above / below for above, below in zip(numerators, denominators, strict=True)], "×")


def environment(packages: tuple[str, ...]) -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        **{package: version(package) for package in packages},
    }
