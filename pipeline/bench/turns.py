"""Two commands that take turns on one machine, so that one that slows down or is disturbed slows both of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from pipeline.bench.fresh_process import FreshProcess, Span

TURN_SECONDS = 5.0
LOOK_SECONDS = 0.1


def run_until(process: FreshProcess, is_ready: Callable[[], bool]) -> None:
    """Waits until something has come, or the process has ended."""
    while not is_ready() and not process.ends_within(LOOK_SECONDS):
        pass


def take_turns(first: FreshProcess, second: FreshProcess, turn_seconds: float = TURN_SECONDS) -> None:
    """Lets one go on while the other is halted, and the other way round, until one has ended; then the other one goes on to its end.

    Args:
        first: a process that runs.
        second: another one.
        turn_seconds: how long each goes on at a time.

    Raises:
        UserError: when one failed, with what it wrote.
    """
    going, waiting = first, second
    while True:
        with waiting.halted():
            if going.ends_within(turn_seconds):
                break
        going, waiting = waiting, going
    going.printed()
    waiting.printed()


def seconds_between(moments: Sequence[float], halts: Sequence[Span]) -> list[float]:
    """Seconds from each moment to the next, without those in which the process was halted.

    Args:
        moments: in seconds since 1970, rising.
        halts: spans that do not overlap.
    """
    return [
        end - begin - sum(max(0.0, min(end, until) - max(begin, since)) for since, until in halts)
        for begin, end in pairwise(moments)
    ]
