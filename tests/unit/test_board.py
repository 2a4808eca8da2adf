"""Progress display of a search."""

import io

from pipeline.search.board import Board

POINT = {"model.levels": ["c4", "c5"], "optimiser.head_lr": 0.00123456}


def shown_on(out: io.StringIO) -> str:
    """Text about four trials, three of which end, each in another way."""
    board = Board("tiny", 4, "AUSUC", out)
    with board.shown():
        for number in range(3):
            board.began(number, POINT, 6)
            board.epoch(number, 1, 0.1 * number)
        board.ended(0, "finished", 0.25)
        board.ended(1, "stopped", 0.1)
        board.ended(2, "failed", None, "the loss became non-finite")
        board.began(3, POINT, 6)
        board.say("something else")
    return out.getvalue()


def test_elsewhere_each_event_is_a_line() -> None:
    lines = shown_on(io.StringIO()).splitlines()
    assert lines[0] == "trial 0 begins: levels=[c4, c5] head_lr=0.00123"
    assert lines[1] == "trial 0  epoch 1/6  AUSUC 0.0000"
    stopped = "trial 1 stopped at AUSUC 0.1000; 1 finished, 1 stopped, 1 running of 4; best 0.2500 of trial 0"
    assert any(line.startswith(stopped) for line in lines)
    assert lines[-3].startswith("trial 2 failed: the loss became non-finite") and " left" in lines[-3]
    assert lines[-1] == "something else"


def test_on_a_terminal_a_table_shows_running_trials_first_and_then_the_best() -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    last = shown_on(terminal).rpartition("something else")[2]
    states = [line.split("│")[2].strip() for line in last.splitlines() if line.count("│") > 5]
    assert states[-4:] == ["running", "finished", "stopped", "failed"]
    assert "best 0.2500 of trial 0" in last
    assert "[c4, c5]" in last, "brackets are no markup"
