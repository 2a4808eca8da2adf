"""One line of the doctor's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ExitCode

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Line:
    """What was looked at and found.

    `bad` is what makes a run impossible; `warn` makes it slower, or may trouble it later.
    """

    state: State
    check: str
    found: str
    remedy: str = ""
    code: ExitCode = ExitCode.FINE
    """What a run would answer with; of bad lines alone."""


def wrong(check: str, found: str, remedy: str) -> Line:
    """Something that was named on the command line or in the environment is not as it must be."""
    return Line("bad", check, found, remedy, ExitCode.BAD_INPUT)


def lacking(check: str, found: str, remedy: str) -> Line:
    """This machine cannot run anything."""
    return Line("bad", check, found, remedy, ExitCode.CANNOT_RUN_HERE)


def worst(lines: Sequence[Line]) -> ExitCode:
    """The exit code for all of them."""
    return max((line.code for line in lines), default=ExitCode.FINE)
