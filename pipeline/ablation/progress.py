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
from pipeline.train.spec import Split


class GridProgress:
    """Cells done, running and failed, cells an hour, and the time left; and the epochs of the runs that are trained now.

    Args:
        cells: number of cells.
        runs: number of runs of all cells.
        last: split of the last run of a cell.
    """

    def __init__(self, cells: int, runs: int, last: Split, stream: TextIO) -> None:
        self._cells, self._runs, self._last = cells, runs, last
        self._ended = self._done = self._failed = 0
        self._begun = time.monotonic()
        texts = TextColumn("{task.description}"), TextColumn("{task.fields[score]}")
        columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1]
        self._bars = Progress(*columns, console=Console(file=stream), disable=not stream.isatty(), transient=True)
        self._all = self._bars.add_task("cells", total=cells, score="")
        self._bar_of: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        """Each run's epochs are shown by a thread of its own."""

    def shown(self) -> AbstractContextManager[object]:
        return self._bars

    def say(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def follow(self, cell: Cell) -> OnEpoch:
        """A function to call after each epoch of a run that begins now."""
        if self._bars.disable:
            self.say(f"{cell.label}: begins")
        with self._lock:
            bar = self._bar_of[cell.identity] = self._bars.add_task(cell.label, total=None, score="")
            self._summary()

        def show_epoch(step: int, metrics: Mapping[str, float]) -> None:
            prefix = "val" if cell.split == "tune" else "test"
            figures = {name: metrics.get(f"{prefix}/{key}") for name, key in (("T1", "zsl_t1"), ("H", "gzsl_h"))}
            score = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
            self._bars.update(bar, completed=step, total=metrics["epochs"], score=score)
            if step == metrics["epochs"]:
                # On `tune` the run counts with its best epoch, which may be an earlier one.
                which = "last epoch " if cell.split == "tune" else ""
                summary = self._end(cell, done=int(cell.split == self._last), failed=0)
                self.say(f"{cell.label}: {which}{score}; {summary}")

        return show_epoch

    def failed(self, cell: Cell, failure: Failure) -> None:
        """Count a failed run, whose reason is said by itself."""
        self._end(cell, done=0, failed=1)

    def _end(self, cell: Cell, done: int, failed: int) -> str:
        """Count a run that has ended and remove its bar; returns what is done and what is left."""
        with self._lock:
            self._ended, self._done, self._failed = self._ended + 1, self._done + done, self._failed + failed
            self._runs -= failed * (cell.split != self._last)  # No run follows.
            if (bar := self._bar_of.pop(cell.identity, None)) is not None:
                self._bars.remove_task(bar)
            return self._summary()

    def _summary(self) -> str:
        ended = self._cells * self._ended / self._runs  # A cell counts for a half between its two runs.
        seconds = time.monotonic() - self._begun
        parts = [f"{self._done} of {self._cells} cells done"]
        parts += [f"{len(self._bar_of)} running"] * bool(self._bar_of)
        parts += [f"{self._failed} failed"] * bool(self._failed)
        if self._ended:
            parts += [f"{3600 * ended / seconds:.0f} an hour"]
            parts += [f"{duration(seconds * (self._cells - ended) / ended)} left"] * (self._ended < self._runs)
        summary = ", ".join(parts)
        self._bars.update(self._all, completed=ended, score=summary)
        return summary
