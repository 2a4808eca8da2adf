"""Two commands that want the same runs at the same time: each run has one living driver."""

import os
import signal
import socket
from collections import Counter

import pytest

from tests.ray.command import Place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.test_ablation import write_grid
from tests.ray.tracked import children_of, client_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.mark.timeout(600)
def test_a_second_train_leaves_the_living_first_one_alone(place: Place) -> None:
    command = ("train", *write_small(place.folder), "--split", "tune", "--json", "--set", "schedule.epochs=3")
    first = place.start(*command, *long_epochs(40))
    wait_until(lambda: len(place.epochs_noted()) >= 1, "the first epoch was noted", 300, first)
    first.process.send_signal(signal.SIGSTOP)  # A halted driver lives, and does not end before the others have looked.
    for second in (place.run(*command, *long_epochs(40)), place.run(*command, *long_epochs(40), "--force")):
        assert second.code == 3, second.err
        assert f"is being run by process {first.process.pid} on {socket.gethostname()}" in second.json["error"]
    assert len(place.ray_sessions) == 1, "Ray was not started for them"
    first.process.send_signal(signal.SIGCONT)
    answer = first.answer()
    assert answer.code == 0, answer.err
    client = client_of(place)
    (run,) = children_of(client)
    assert run.info.status == "FINISHED"
    assert steps_of(client, run)["train/total"] == [1, 2, 3]
    assert not os.listdir(place.folder / ".mgmrn" / "runs" / "claims")


@pytest.mark.timeout(900)
def test_two_ablates_share_a_grid(place: Place) -> None:
    grid = write_grid(place)
    both = [place.start("ablate", *grid, "--concurrency", "1") for _ in range(2)]
    answers = [running.answer(timeout=800) for running in both]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]
    assert all(answer.json["totals"] == {"cached": 2} for answer in answers)
    client = client_of(place)
    experiments = [one.experiment_id for one in client.search_experiments() if "ablation" in one.name]
    runs = client.search_runs(experiments, "tags.`mgmrn.kind` = 'run'")
    assert Counter((run.data.tags["mgmrn.variant"], run.data.tags["mgmrn.split"]) for run in runs) == {
        (variant, split): 1 for variant in ("base", "smooth") for split in ("tune", "final")
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(len(set(steps)) == len(steps) for run in runs for steps in steps_of(client, run).values())
