"""Claims: the folder of a run belongs to one living driver at a time."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest

from pipeline.claims import TakenError, drop_dead_claims, living_holder, release, take, taken
from pipeline.driver import Driver, _start, driver_tag
from pipeline.storage import StoragePath

DEAD = f"{socket.gethostname()}:999999999:0.00"


def parent_tag() -> str:
    """Tag of another living process of this host."""
    return str(Driver(socket.gethostname(), os.getppid(), _start(os.getppid())))


def claims(storage: StoragePath) -> list[str]:
    """Tags of the drivers that claim something in a storage."""
    folder = storage / "claims"
    return [(folder / name).read().decode() for name in folder.names()]


def claim(folder: StoragePath, tag: str) -> None:
    (folder.parent / "claims" / f"{folder.name}~0000").write(tag.encode())


def test_a_folder_is_taken_and_released(storage: StoragePath) -> None:
    folder, longer = storage / "run.tune", storage / "run.tune2"
    take(folder)
    take(folder)
    take(longer)
    assert living_holder(folder) is None, "the holder is another driver"
    release(folder)
    assert claims(storage) == [driver_tag()]
    release(longer)
    assert claims(storage) == []


def test_a_living_driver_is_named_and_keeps_its_folder(storage: StoragePath) -> None:
    folder, free = storage / "run.tune", storage / "another"
    claim(folder, parent_tag())
    with pytest.raises(TakenError, match=rf"run.tune is being run by process {os.getppid()} on {socket.gethostname()}"):
        take(folder)
    release(folder)
    assert living_holder(folder) == parent_tag()
    with pytest.raises(TakenError), taken([free, folder]):
        pass
    assert claims(storage) == [parent_tag()], "of several folders none stays claimed"


def test_the_claim_of_a_dead_driver_is_replaced(storage: StoragePath) -> None:
    folder = storage / "run.tune"
    claim(folder, DEAD)
    take(folder)
    assert claims(storage) == [driver_tag()]


def test_claims_of_this_hosts_dead_drivers_are_dropped(storage: StoragePath) -> None:
    """A claim of another host stays: whether its driver lives is not known at once."""
    staying = [parent_tag(), "elsewhere:1:0.00", "no tag"]
    for number, tag in enumerate([DEAD, *staying]):
        claim(storage / f"run{number}.tune", tag)
    take(storage / "own.tune")
    drop_dead_claims(storage)
    assert sorted(claims(storage)) == sorted([*staying, driver_tag()])


over = multiprocessing.get_context("fork").Event()


def try_to_take(folder: StoragePath, winners: multiprocessing.Queue[int]) -> None:
    try:
        take(folder)
    except TakenError:
        return
    winners.put(os.getpid())
    over.wait()


@pytest.mark.parametrize("left", ["", DEAD], ids=["free", "left by a dead driver"])
def test_one_of_many_processes_gets_the_claim(storage: StoragePath, left: str) -> None:
    folder = storage / "run.tune"
    if left:
        claim(folder, left)
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
    assert len(claims(storage)) == 1
