"""Commands that are measured side by side: one stands still while the other goes on, and nothing of them is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgmrn.errors import UserError
from pipeline.bench.fresh_process import FreshProcess, printed_by
from pipeline.bench.turns import run_until, seconds_between, take_turns

SETTLING = 0.05
"""Seconds from the signal to the moment at which a process stands still, at most."""
TICKS = "import time\nfor _ in range({}): print(time.time(), flush=True); time.sleep(0.01)"
PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def ticks(process: FreshProcess) -> list[float]:
    return [float(line) for line in process.printed_so_far().split("\n")[:-1]]


@pytest.fixture
def ticking() -> Iterator[FreshProcess]:
    """It is a child of what was asked for that ticks, as the ranks of a run are."""
    with FreshProcess("-c", PARENT, TICKS.format(100_000)) as process:
        run_until(process, lambda: len(ticks(process)) > 2)
        yield process


def test_what_is_halted_stands_still_with_all_that_it_started(ticking: FreshProcess) -> None:
    with ticking.halted():
        time.sleep(SETTLING)
        before = len(ticks(ticking))
        time.sleep(0.2)
        assert len(ticks(ticking)) == before
    run_until(ticking, lambda: len(ticks(ticking)) > before)
    ((begin, end),) = ticking.halts
    assert end - begin >= SETTLING + 0.2
    assert not any(begin + SETTLING < tick < end for tick in ticks(ticking))


def test_nothing_is_left_of_a_process_whose_context_is_left() -> None:
    with FreshProcess(
        "-c",
        PARENT,
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
    ) as process:
        run_until(process, lambda: process.printed_so_far() == "1\n")
        family = process._family()
        assert len(family) == 2
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)


def test_two_take_turns_until_one_has_ended_and_the_other_goes_on_to_its_end() -> None:
    with FreshProcess("-c", TICKS.format(40)) as short, FreshProcess("-c", TICKS.format(120)) as long:
        run_until(long, lambda: len(ticks(long)) > 1)
        take_turns(short, long, turn_seconds=0.15)
        assert (len(ticks(short)), len(ticks(long))) == (40, 120)
        assert short.halts and long.halts
        for process in (short, long):
            assert not any(begin + SETTLING < tick < end for tick in ticks(process) for begin, end in process.halts)
            assert sum(seconds_between(ticks(process), process.halts)) < ticks(process)[-1] - ticks(process)[0]


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="a command that was to be measured failed: ValueError: no"):
        printed_by("-c", "raise ValueError('no')")
    with (
        FreshProcess("-c", "raise ValueError('first')") as first,
        FreshProcess("-c", "print(1)") as second,
        pytest.raises(UserError, match="ValueError: first"),
    ):
        take_turns(first, second)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=30))
def test_halts_do_not_count(lengths: list[float]) -> None:
    """Moments and halts of a process that stands still in every second span."""
    edges = [0.0]
    for length in lengths:
        edges.append(edges[-1] + length)
    halts = list(pairwise(edges))[1::2]
    moments = [edges[0], edges[-1]]
    assert seconds_between(moments, halts) == [pytest.approx(sum(lengths[::2]), abs=1e-9)]
    assert sum(seconds_between(edges, halts)) == pytest.approx(sum(lengths[::2]), abs=1e-9)
