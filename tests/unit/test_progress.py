"""Progress of a grid: what it prints without a terminal, and what it shows on one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from pipeline.ablation import progress
from pipeline.ablation.progress import GridProgress
from pipeline.train.cell import Cell
from pipeline.train.messages import Failure

SCORES = {"zsl_t1": 0.5, "gzsl_h": 0.25}
FIGURES = {"epochs": 2.0} | {f"{split}/{key}": value for split in ("val", "test") for key, value in SCORES.items()}


@pytest.fixture
def cells(small_cell: Cell) -> list[Cell]:
    """Two `tune` runs and the `final` run of another cell."""
    cells = [replace(small_cell, config_hash=f"{number}" * 64) for number in range(3)]
    return [cells[0], replace(cells[1], split="final"), cells[2]]


def run_all(stream: io.StringIO, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> str:
    """A `tune` and a `final` run that end after half an hour and an hour, and a `tune` run that fails later."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = GridProgress(3, 6, "final", stream)
    with shown.shown():
        follow = [shown.follow(cell) for cell in cells]
        for show_epoch in follow:
            show_epoch(1, FIGURES)
        for show_epoch in follow[:2]:
            now[0] += 1800
            show_epoch(2, FIGURES)
        now[0] += 3600
        shown.failed(cells[2], Failure(reason="non-finite", message="the loss is nan"))
        shown.say("another line")
    return stream.getvalue()


def test_elsewhere_runs_that_begin_and_end_are_lines(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_all(io.StringIO(), cells, monkeypatch).splitlines() == [
        *(f"{cell.label}: begins" for cell in cells),
        f"{cells[0].label}: last epoch T1 0.500  H 0.250; 0 of 3 cells done, 2 running, 1 an hour, 2 h 30 min left",
        f"{cells[1].label}: T1 0.500  H 0.250; 1 of 3 cells done, 1 running, 1 an hour, 2 h 00 min left",
        "another line",
    ]


def test_on_a_terminal_the_runs_that_are_trained_have_bars(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    text = run_all(terminal, cells, monkeypatch)
    assert "another line" in text
    # Three runs of the five that are left of six.
    assert "1 of 3 cells done, 1 failed, 1 an hour, 1 h 20 min left" in text
