"""Progress of a search: a live table on a terminal, one line per event elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.config.yaml_tree import yaml_value
from pipeline.console import duration
from pipeline.search.study import State

SHOWN = 12
"""Number of rows of the live table: running trials first, then the best."""


@dataclass
class _Row:
    point: str = ""
    epochs: int = 0
    """Number of epochs of the trial; 0 for a trial of an earlier launch."""
    step: int = 0
    score: float | None = None
    state: State = "running"


class Board:
    """Progress of a search, on standard error unless another stream is given."""

    def __init__(self, name: str, trials: int, score_name: str, stream: TextIO | None = None) -> None:
        self._name, self._total, self._score_name = name, trials, score_name
        self._console = Console(file=stream or sys.stderr)
        self._rows: dict[int, _Row] = {}
        self._begun = time.monotonic()
        self._over_before = 0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with Live(self._table(), console=self._console, refresh_per_second=2) as self._live:
            yield
        self._live = None

    def remember(self, number: int, point: Mapping[str, Any], state: State, score: float | None) -> None:
        self._rows[number] = _Row(_shown(point), score=score, state=state)
        self._over_before += state != "running"

    def began(self, number: int, point: Mapping[str, Any], epochs: int) -> None:
        self._rows[number] = _Row(_shown(point), epochs)
        self._event(f"trial {number} begins: {self._rows[number].point}")

    def epoch(self, number: int, step: int, score: float) -> None:
        row = self._rows[number]
        row.step, row.score = step, score
        self._event(f"trial {number}  epoch {step}/{row.epochs}  {self._score_name} {score:.4f}")

    def ended(self, number: int, state: State, score: float | None, reason: str = "") -> None:
        row = self._rows.setdefault(number, _Row())
        row.state, row.score = state, score
        ending = f"failed: {reason}" if score is None else f"{state} at {self._score_name} {score:.4f}"
        self._event(f"trial {number} {ending}; {self._summary()}")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def best(self) -> tuple[float, int] | None:
        rows = self._rows.items()
        finished = [(row.score, n) for n, row in rows if row.state == "finished" and row.score is not None]
        return max(finished, default=None)

    def _event(self, text: str) -> None:
        if self._live is not None:
            self._live.update(self._table())
        else:
            self.say(text)

    def _summary(self) -> str:
        states = [row.state for row in self._rows.values()]
        counts = {state: states.count(state) for state in ("finished", "stopped", "failed", "running")}
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count) + f" of {self._total}"
        if self.best is not None:
            score, number = self.best
            text += f"; best {score:.4f} of trial {number}"
        over = len(states) - counts["running"]
        if self._over_before < over < self._total:
            seconds_each = (time.monotonic() - self._begun) / (over - self._over_before)
            text += f"; {duration(seconds_each * (self._total - over))} left"
        return text

    def _table(self) -> Group:
        def rank(row: _Row) -> tuple[bool, float]:
            return row.state != "running", -(row.score if row.score is not None else -1e9)

        table = Table("trial", "state", "epoch", self._score_name, "values")
        for number, row in sorted(self._rows.items(), key=lambda item: rank(item[1]))[:SHOWN]:
            score = "–" if row.score is None else f"{row.score:.4f}"
            step = f"{row.step}/{row.epochs}" if row.epochs else ""
            table.add_row(str(number), row.state, step, score, escape(row.point))
        return Group(Text(f"{self._name}: {self._summary()}"), table)


def _shown(point: Mapping[str, Any]) -> str:
    """Values by the last part of their paths, on one line."""
    return " ".join(
        f"{path.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else yaml_value(value)}"
        for path, value in point.items()
    )
