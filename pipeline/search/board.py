"""Progress of a search: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.config.yaml_tree import yaml_value
from pipeline.console import duration

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

SHOWN = 12
"""Number of rows of the live table: running trials first, then the best."""


@dataclass
class _Row:
    point: str
    total: int
    steps: int = 0
    score: float | None = None
    state: str = "running"


class Board:
    """Progress display of a search.

    Args:
        name: name of the search.
        trials: number of trials to run.
        metric: name of the score.
        stream: output; standard error by default.
    """

    def __init__(self, name: str, trials: int, metric: str, stream: TextIO | None = None) -> None:
        self._name, self._total, self._metric = name, trials, metric
        self._stream = stream or sys.stderr
        self._rows: dict[int, _Row] = {}
        self._begun = time.monotonic()
        self._over_before = 0
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._table(), console=Console(file=self._stream), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def remember(self, number: int, point: Mapping[str, Any], state: str, score: float | None) -> None:
        """Adds a trial of an earlier launch."""
        self._rows[number] = _Row(_shown(point), 0, 0, score, state)
        self._over_before += state != "running"

    def began(self, number: int, point: Mapping[str, Any], epochs: int) -> None:
        """Shows that a trial starts or goes on."""
        self._rows[number] = _Row(_shown(point), epochs)
        self._event(f"trial {number} begins: {self._rows[number].point}")

    def epoch(self, number: int, steps: int, score: float) -> None:
        """Shows the score of an epoch."""
        row = self._rows[number]
        row.steps, row.score = steps, score
        self._event(f"trial {number}  epoch {steps}/{row.total}  {self._metric} {score:.4f}")

    def finished(self, number: int, score: float) -> None:
        """Shows that a trial ended."""
        self._end(number, "finished", score, f"trial {number} finished: {self._metric} {score:.4f}")

    def stopped(self, number: int, score: float) -> None:
        """Shows that a trial was stopped early."""
        self._end(number, "stopped", score, f"trial {number} stopped early at {self._metric} {score:.4f}")

    def failed(self, number: int, why: str) -> None:
        """Shows that a trial failed."""
        self._rows.setdefault(number, _Row("", 0))
        self._end(number, "failed", None, f"trial {number} failed: {why}")

    def say(self, text: str) -> None:
        """Prints a line beside the table."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    @property
    def best(self) -> tuple[int, float] | None:
        """Number and score of the best finished trial."""
        scores = [
            (row.score, number)
            for number, row in self._rows.items()
            if row.state == "finished" and row.score is not None
        ]
        return (max(scores)[1], max(scores)[0]) if scores else None

    def counts(self) -> dict[str, int]:
        """State → number of trials."""
        states = [row.state for row in self._rows.values()]
        return {state: states.count(state) for state in ("finished", "stopped", "failed", "running")}

    def _end(self, number: int, state: str, score: float | None, text: str) -> None:
        row = self._rows[number]
        row.state, row.score = state, score
        self._event(f"{text}; {self._summary()}")

    def _event(self, text: str) -> None:
        if self._live is not None:
            self._live.update(self._table())
        else:
            self.say(text)

    def _summary(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        best = f"; best {self.best[1]:.4f} of trial {self.best[0]}" if self.best else ""
        over = sum(count for state, count in self.counts().items() if state != "running")
        left = ""
        if self._over_before < over < self._total:
            each = (time.monotonic() - self._begun) / (over - self._over_before)
            left = f"; {duration(each * (self._total - over))} left"
        return f"{counts} of {self._total}{best}{left}"

    def _table(self) -> Group:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for header in ("trial", "state", "epoch", self._metric, "values"):
            table.add_column(header)
        running = [item for item in self._rows.items() if item[1].state == "running"]
        others = sorted(
            (item for item in self._rows.items() if item[1].state != "running"),
            key=lambda item: -(item[1].score if item[1].score is not None else -1e9),
        )
        for number, row in (running + others)[:SHOWN]:
            score = "–" if row.score is None else f"{row.score:.4f}"
            table.add_row(
                str(number), row.state, f"{row.steps}/{row.total}" if row.total else "", score, escape(row.point)
            )
        return Group(Text(f"{self._name}: {self._summary()}"), table)


def _shown(point: Mapping[str, Any]) -> str:
    """Values without the sections of their paths, on one line."""
    parts = []
    for path, value in point.items():
        shown = f"{value:.3g}" if isinstance(value, float) else yaml_value(value)
        parts.append(f"{path.rpartition('.')[2]}={shown}")
    return " ".join(parts)
