from __future__ import annotations

import io

import pytest

from pipeline.search.board import Board

POINT = {"model.levels": ["c4", "c5"], "optimiser.head_lr": 0.00123456}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def course(board: Board) -> None:
    """Three of four trials end, each in its own way."""
    with board:
        for number in range(3):
            board.began(number, POINT, 6)
            board.epoch(number, 1, 0.1 * number)
        board.finished(0, 0.25)
        board.stopped(1, 0.1)
        board.failed(2, "the loss became non-finite")
        board.began(3, POINT, 6)
        board.say("something else")


def test_elsewhere_each_event_is_a_line() -> None:
    out = io.StringIO()
    course(Board("tiny", 4, "AUSUC", out))
    lines = out.getvalue().splitlines()
    assert lines[0] == "trial 0 begins: levels=[c4, c5] head_lr=0.00123"
    assert lines[1] == "trial 0  epoch 1/6  AUSUC 0.0000"
    assert (
        "trial 1 stopped early at AUSUC 0.1000; 1 finished, 1 stopped, 1 running of 4; best 0.2500 of trial 0"
        in out.getvalue()
    )
    assert "trial 2 failed: the loss became non-finite" in out.getvalue()
    assert " left" in lines[-3], "time left is estimated once a trial is over"
    assert lines[-1] == "something else"


def test_on_a_terminal_a_table_shows_running_trials_first_and_then_the_best() -> None:
    out = Terminal()
    course(Board("tiny", 4, "AUSUC", out))
    last = out.getvalue().rpartition("something else")[2]
    rows = [
        line for line in last.splitlines() if any(state in line for state in ("│ running", "│ finished", "│ stopped"))
    ]
    assert [row.split("│")[2].strip() for row in rows[-3:]] == ["running", "finished", "stopped"]
    assert "best 0.2500 of trial 0" in last
    assert "[c4, c5]" in last, "brackets are no markup"


def test_only_finished_trials_can_be_the_best() -> None:
    board = Board("tiny", 4, "AUSUC", io.StringIO())
    assert board.best is None
    board.began(0, POINT, 6)
    board.stopped(0, 0.9)
    assert board.best is None
    board.remember(1, POINT, "finished", 0.4)
    assert board.best == (1, 0.4)
    assert board.counts() == {"finished": 1, "stopped": 1, "failed": 0, "running": 0}


@pytest.mark.parametrize("over_before", [0, 3])
def test_the_time_left_counts_trials_of_this_sitting(over_before: int) -> None:
    out = io.StringIO()
    board = Board("tiny", 10, "AUSUC", out)
    for number in range(over_before):
        board.remember(number, POINT, "stopped", None)
    board.began(over_before, POINT, 6)
    board.stopped(over_before, 0.1)
    assert "0 s left" in out.getvalue(), "a trial that took no time leaves none"
