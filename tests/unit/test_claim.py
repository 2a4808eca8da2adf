"""Claims: the folder of a run belongs to one living driver at a time."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from pipeline.driver import Driver, _start, driver_tag
from pipeline.train.storage import TakenError, claim_file, living_holder, release, take, taken

DEAD = f"{socket.gethostname()}:999999999:0.00"


def parent_tag() -> str:
    """Tag of another living process of this host."""
    return str(Driver(socket.gethostname(), os.getppid(), _start(os.getppid())))


def test_a_folder_is_taken_and_released(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run.tune"
    take(folder)
    take(folder)
    assert living_holder(folder) is None, "the holder is another driver"
    release(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_living_driver_is_named_and_keeps_its_folder(tmp_path: Path) -> None:
    folder, free = tmp_path / "run.tune", tmp_path / "another"
    claim_file(folder).write_text(parent_tag())
    with pytest.raises(TakenError, match=rf"run.tune is being run by process {os.getppid()} on {socket.gethostname()}"):
        take(folder)
    release(folder)
    assert living_holder(folder) == parent_tag()
    with pytest.raises(TakenError), taken([free, folder]):
        pass
    assert list(tmp_path.iterdir()) == [claim_file(folder)], "of several folders none stays claimed"


def test_the_claim_of_a_dead_driver_is_replaced_also_when_a_dead_one_was_taking_it(tmp_path: Path) -> None:
    folder = tmp_path / "run.tune"
    claim_file(folder).write_text(DEAD)
    claim_file(folder).with_name(f"{claim_file(folder).name}+").write_text(DEAD)
    take(folder)
    assert claim_file(folder).read_text() == driver_tag()
    assert list(tmp_path.iterdir()) == [claim_file(folder)]


over = multiprocessing.get_context("fork").Event()


def try_to_take(folder: Path, winners: multiprocessing.Queue[int]) -> None:
    try:
        take(folder)
    except TakenError:
        return
    winners.put(os.getpid())
    over.wait()


@pytest.mark.parametrize("left", ["", DEAD], ids=["free", "left by a dead driver"])
def test_one_of_many_processes_gets_the_claim(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "run.tune"
    if left:
        claim_file(folder).write_text(left)
    context = multiprocessing.get_context("fork")
    over.clear()
    winners: multiprocessing.Queue[int] = context.Queue()
    racers = [context.Process(target=try_to_take, args=(folder, winners)) for _ in range(8)]
    for racer in racers:
        racer.start()
    winner = winners.get(timeout=30)
    losers = [racer for racer in racers if racer.pid != winner]
    for loser in losers:
        loser.join(30)
    assert all(loser.exitcode == 0 for loser in losers) and winners.empty()
    over.set()
    for racer in racers:
        racer.join(30)
    assert list(tmp_path.iterdir()) == [claim_file(folder)]
