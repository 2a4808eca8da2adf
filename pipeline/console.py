"""Output of a command: rich tables on a terminal, plain lines elsewhere, with `--json` one object alone on standard output."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from pipeline import places
from pipeline.redaction import redact_address


def say(text: str) -> None:
    """Prints a line on standard error; standard output belongs to the result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def shell_command(*words: object) -> str:
    """A command of the pipeline that a shell reads as these words."""
    return shlex.join(("python", "-m", "pipeline", *map(str, words)))


def option(name: str, value: object, default: object, variable: str) -> tuple[str, ...]:
    """An option of a printed command; empty where the command takes the value from the environment, or by default."""
    shown = redact_address(str(value))
    return () if shown == redact_address(os.environ.get(variable, str(default))) else (name, shown)


def where_tracked(tracking_uri: str, name: str) -> str:
    """Sentence on the store of a launch, with the command that shows it."""
    store = option("--tracking-uri", tracking_uri, places.TRACKING_URI, "MLFLOW_TRACKING_URI")
    return f"tracked in {tracking_uri}; `{shell_command('ui', name, *store)}` shows it"


@dataclass(frozen=True)
class Console:
    """Output of one command."""

    as_json: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def people(self) -> TextIO:
        return self.err if self.as_json else self.out

    def line(self, text: str) -> None:
        self.people.write(f"{text}\n")
        self.people.flush()

    def result(self, value: Mapping[str, Any]) -> None:
        """Prints the object of `--json`; nothing without it. Numbers that JSON lacks (NaN, infinity) become null."""
        if self.as_json:
            self.out.write(json.dumps(_finite(value), allow_nan=False) + "\n")
            self.out.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        if self.people.isatty():
            from rich.console import Console as RichConsole
            from rich.markup import escape
            from rich.table import Table

            table = Table(*headers, title=title or None)
            for row in rows:
                table.add_row(*(escape(cell) for cell in row))
            RichConsole(file=self.people).print(table)
            return
        if title:
            self.line(title)
        widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
        for row in (headers, *rows):
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A function to call with (done, total): a line that renews itself on a terminal, ten lines elsewhere."""
        stream, start = self.people, time.monotonic()
        terminal = stream.isatty()
        shown = -1

        def show(done: int, total: int) -> None:
            nonlocal shown
            elapsed, last = time.monotonic() - start, done >= total
            step = int(5 * elapsed) if terminal else 10 * done // max(total, 1)
            if step <= shown and not last:
                return
            shown = step
            rate = done / max(elapsed, 1e-9)
            left = "" if last or not done else f", {duration((total - done) / rate)} left"
            text = f"{what} {done}/{total}, {rate:.1f}/s{left}"
            stream.write(f"\r\x1b[K{text}" + ("\n" if last else "") if terminal else f"{text}\n")
            stream.flush()

        return show


def duration(seconds: float) -> str:
    """A duration as `45 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value
