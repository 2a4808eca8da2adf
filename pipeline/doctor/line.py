"""One line of the doctor's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ExitCode

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Line:
    """One check and its finding.

    `bad` makes a run impossible; `warn` makes it slower, or may disturb it later.
    """

    state: State
    check: str
    found: str
    remedy: str = ""
    code: ExitCode = ExitCode.FINE
    """Exit code that a run would end with; FINE unless the line is bad."""


def wrong(check: str, found: str, remedy: str) -> Line:
    """A bad line about something that was named on the command line or in the environment."""
    return Line("bad", check, found, remedy, ExitCode.BAD_INPUT)


def lacking(check: str, found: str, remedy: str) -> Line:
    """A bad line about this machine, which cannot run anything."""
    return Line("bad", check, found, remedy, ExitCode.CANNOT_RUN_HERE)


def worst(lines: Sequence[Line]) -> ExitCode:
    """Exit code for all lines: the largest."""
    return max((line.code for line in lines), default=ExitCode.FINE)
