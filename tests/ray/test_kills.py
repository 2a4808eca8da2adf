"""Thirty kills at random instants after the first epoch was logged: the same command goes on, and nothing is lost, doubled or left.

With `MGMRN_KILLS_FILE=FILE`, a row of every command is appended to FILE: verb, signals, seconds after the epoch, epochs noted, exit code.
"""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.ray.command import Place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.test_ablation import write_grid
from tests.ray.tracked import client_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.long]

KILLS = 3
"""Kills of each command; with ten commands thirty in all."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LATEST_S = 6.0
"""Longest time from a noted epoch to the kill."""

SEARCH = Path(__file__).with_name("killed-search.yaml").read_text()


def train(place: Place) -> tuple[str, ...]:
    length = ("--split", "tune", "--set", "schedule.epochs=8", *long_epochs(40))
    return ("train", *write_small(place.folder), *length, "--json")


def search(place: Place) -> tuple[str, ...]:
    _, *data = write_small(place.folder)
    (place.folder / "tiny-search.yaml").write_text(SEARCH)
    return ("search", "tiny-search.yaml", *data, "--json", "--resume")


def ablate(place: Place) -> tuple[str, ...]:
    return ("ablate", *write_grid(place), "--json")


def epochs_noted(place: Place) -> int:
    files = place.folder.glob(".mgmrn/runs/**/spool/[0-9]*")
    return sum(path.read_text().count('"kind": "metrics"') for path in files)


def all_runs(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def are_finished(runs: list[Run]) -> bool:
    return {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(10))
def test_a_command_that_is_killed_three_times_comes_to_the_same_end(place: Place, number: int) -> None:
    chance = random.Random(number)
    command = (train, train, search, ablate)[number % 4](place)
    killed: list[str] = []
    while len(killed) < KILLS:
        seen, running = epochs_noted(place), place.start(*command)
        ended = running.process.poll  # All epochs may have been noted before the kill.
        wait_until(
            lambda seen=seen, ended=ended: epochs_noted(place) > seen or ended() is not None, "an epoch was noted", 400
        )
        wait = chance.uniform(0, LATEST_S)
        time.sleep(wait)
        if running.process.poll() is not None:
            break
        number_of_signal = chance.choice(SIGNALS)
        running.process.send_signal(number_of_signal)
        answer = running.answer(timeout=120)
        killed.append(f"{number_of_signal.name} after {wait:.1f} s → {answer.code}")
        assert answer.code in (-signal.SIGKILL, 128 + number_of_signal, 0) or (
            # All runs are done, and Ray shuts down: for about a second nothing catches SIGTERM.
            answer.code == -signal.SIGTERM and are_finished(all_runs(client_of(place)))
        )
        psutil.wait_procs(place.processes(), timeout=60)
        assert not place.processes(), f"{killed[-1]}: {[process.cmdline() for process in place.processes()]}"
    answer = place.run(*command, timeout=900)
    note(f"{command[0]} | {'; '.join(killed)} | {epochs_noted(place)} | {answer.code}")
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err

    client = client_of(place)
    runs = all_runs(client)
    assert are_finished(runs)
    for run in runs:
        steps = steps_of(client, run)
        assert all(sorted(set(found)) == sorted(found) for found in steps.values()), run.info.run_name
        if "train/total" in steps:
            assert sorted(steps["train/total"]) == list(range(1, len(steps["train/total"]) + 1))
    assert not place.processes()
    storage = place.folder / ".mgmrn" / "runs"
    assert not [path for path in storage.rglob(".checkpoint_*")]
    assert not [path for path in storage.rglob("claims/*")]


def note(row: str) -> None:
    if file := os.environ.get("MGMRN_KILLS_FILE"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(row + "\n")
