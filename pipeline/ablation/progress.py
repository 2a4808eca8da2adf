"""Progress of a grid: bars on a terminal, elsewhere a line for each run that begins or ends."""

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipeline.console import duration
from pipeline.spool import OnEpoch
from pipeline.train.cell import Cell
from pipeline.train.messages import Failure


class GridProgress:
    """Runs done and failed, runs an hour, and the time left; and the epochs of the runs that are trained now."""

    def __init__(self, runs: int, stream: TextIO) -> None:
        self._runs, self._done, self._failed = runs, 0, 0
        self._begun = time.monotonic()
        texts = TextColumn("{task.description}"), TextColumn("{task.fields[score]}")
        columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1]
        self._bars = Progress(*columns, console=Console(file=stream), disable=not stream.isatty(), transient=True)
        self._all = self._bars.add_task("runs", total=runs, score="")
        self._bar_of: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        """Each run's epochs are shown by a thread of its own."""

    def shown(self) -> AbstractContextManager[object]:
        """A context in which the bars are shown, on a terminal."""
        return self._bars

    def say(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def follow(self, cell: Cell) -> OnEpoch:
        """A function to call after each epoch of a run that begins now."""
        if self._bars.disable:
            self.say(f"{cell.label}: begins")
        bar = self._bar_of[cell.identity] = self._bars.add_task(cell.label, total=None, score="")

        def show_epoch(step: int, metrics: Mapping[str, float]) -> None:
            prefix = "val" if cell.split == "tune" else "test"
            figures = {name: metrics.get(f"{prefix}/{key}") for name, key in (("T1", "zsl_t1"), ("H", "gzsl_h"))}
            score = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
            self._bars.update(bar, completed=step, total=metrics["epochs"], score=score)
            if step == metrics["epochs"]:
                self.say(f"{cell.label}: {score}; {self._end(cell, done=1)}")

        return show_epoch

    def failed(self, cell: Cell, failure: Failure) -> None:
        """Count a failed run, whose reason is said by itself."""
        self._end(cell, failed=1)

    def _end(self, cell: Cell, done: int = 0, failed: int = 0) -> str:
        """Count a run that has ended and remove its bar; returns what is done and what is left."""
        with self._lock:
            self._done, self._failed = self._done + done, self._failed + failed
            if (bar := self._bar_of.pop(cell.identity, None)) is not None:
                self._bars.remove_task(bar)
            done, failed = self._done, self._failed
        ended = done + failed
        an_hour = 3600 * ended / (time.monotonic() - self._begun)
        parts = [f"{done} of {self._runs} runs done"]
        parts += [f"{failed} failed"] * bool(failed)
        parts += [f"{an_hour:.0f} an hour"]
        if ended < self._runs:
            parts.append(f"{duration(3600 * (self._runs - ended) / an_hour)} left")
        summary = ", ".join(parts)
        self._bars.update(self._all, completed=ended, score=summary)
        return summary
