"""Faults of a run: a killed worker, a killed driver, signals, and failures that no retry can mend."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.ray.command import Answer, Place, Running, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.tracked import assert_epochs_are_logged_once, children_of, client_of, files_of, runs_of
from tests.recovery import time_recovery

pytestmark = pytest.mark.ray

EPOCHS = 4
KEYS = ("train/total", "train/lr", "val/ausuc", "perf/epoch_s")

SIGTERM_AFTER_RAY = """\
import os, signal
from pipeline.interruption import Interruption, raised_signals
from pipeline.train.cluster import ray_session
try:
    with raised_signals():
        with ray_session(None):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
except Interruption as interruption:
    raise SystemExit(interruption.exit_code)
"""


@pytest.fixture
def arguments(place: Place) -> tuple[str, ...]:
    """A run of four epochs of a second or more each, on `tune`, which is evaluated after every epoch."""
    length = ("--split", "tune", "--set", f"schedule.epochs={EPOCHS}", *long_epochs(60))
    return ("train", *write_small(place.folder), *length, "--json")


def started_until_an_epoch_is_noted(place: Place, arguments: tuple[str, ...]) -> Running:
    """The next epoch has begun when the controller notes one, and takes far longer than what follows here."""
    running = place.start(*arguments)
    wait_until(lambda: len(place.epochs_noted()) >= 1, "the first epoch was noted", 300, running)
    assert len(place.epochs_noted()) < EPOCHS - 1, "the epochs are too short to be killed in the middle of one"
    return running


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_worker_is_replaced_and_every_epoch_is_logged_once(place: Place, arguments: tuple[str, ...]) -> None:
    """Training that goes on is the same to the last bit: `tests/unit/test_engine.py`."""
    running = started_until_an_epoch_is_noted(place, (*arguments, "--workers", "2"))
    first, second = place.training_workers()
    seen = len(place.epochs_noted())
    second.kill()
    time_recovery("train: worker killed", lambda: len(place.epochs_noted()) > seen, running)
    answer = running.answer()
    assert answer.code == 0, answer.err
    assert answer.json["status"] == "finished"
    assert first.pid not in {worker.pid for worker in place.training_workers()}
    client = client_of(place)
    (run,) = children_of(client)
    assert (run.info.run_id, run.info.status) == (answer.json["runs"][0]["run_id"], "FINISHED")
    assert_epochs_are_logged_once(client, run, EPOCHS, *KEYS)


@pytest.mark.timeout(900)
def test_the_same_command_goes_on_after_the_driver_was_killed_and_the_folder_moved(
    place: Place, arguments: tuple[str, ...]
) -> None:
    running = started_until_an_epoch_is_noted(place, arguments)
    running.kill()
    place.kill_all()
    (left,) = (one for one in runs_of(client_of(place)) if one.data.tags["mgmrn.kind"] == "run")
    assert left.info.status == "RUNNING", "a killed driver cannot say that it ended"
    noted = place.epochs_noted()
    assert len(noted) < EPOCHS
    old, place.folder = place.folder, place.folder.rename(place.folder.with_name("moved"))

    again = place.start(*arguments)
    time_recovery("train: driver killed", lambda: len(place.epochs_noted()) > len(noted), again)
    answer = again.answer()
    assert answer.code == 0, answer.err
    assert left.info.run_id in answer.err, "the person is told which run goes on"
    client = client_of(place)
    (run,) = children_of(client)
    assert (run.info.run_id, run.info.status) == (left.info.run_id, "FINISHED")
    assert run.data.tags["mgmrn.attempt"] == "2"
    assert_epochs_are_logged_once(client, run, EPOCHS, *KEYS)
    # A checkpoint that was reported less than a poll before the kill may be lost; all others must not be trained again.
    trained_again = place.epochs_noted()[len(noted) :]
    assert trained_again[0] >= noted[-1], (noted, trained_again)
    (parent,) = (one for one in runs_of(client) if one.data.tags["mgmrn.kind"] == "launch")
    assert parent.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "eval/curve.csv" in files_of(client, run) and not old.exists()


def test_sigterm_is_answered_after_ray_has_ended(place: Place) -> None:
    command = [sys.executable, "-c", SIGTERM_AFTER_RAY]
    ended = subprocess.run(command, cwd=place.folder, env=place.environment, stdin=subprocess.DEVNULL, timeout=300)
    assert ended.returncode == 128 + signal.SIGTERM, "the process ended by the signal itself"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_signal_ends_the_ranks_and_closes_the_run_with_which_the_same_command_goes_on(
    place: Place, arguments: tuple[str, ...]
) -> None:
    run_ids = set()
    for number, reason in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
        noted = len(place.epochs_noted())
        running = place.start(*arguments)
        wait_until(lambda seen=noted: len(place.epochs_noted()) > seen, "an epoch was noted", 300, running)
        ranks = place.training_workers()
        assert ranks
        running.process.send_signal(number)
        answer = running.answer(60)
        assert answer.code == 128 + number
        assert answer.err.splitlines()[-1].startswith("interrupted")
        assert "Traceback" not in answer.err and "***" not in answer.err
        psutil.wait_procs([*ranks, *place.processes()], timeout=30)
        assert not place.processes(), "nothing of it is left"
        parent, left = runs_of(client_of(place))
        run_ids.add(left.info.run_id)
        for one in (parent, left):
            assert (one.info.status, one.data.tags["mgmrn.stop_reason"]) == ("KILLED", reason)

    assert place.run(*arguments).code == 0
    (run,) = children_of(client_of(place))
    assert ({run.info.run_id}, run.info.status) == (run_ids, "FINISHED")
    assert_epochs_are_logged_once(client_of(place), run, EPOCHS, *KEYS)


def assert_failed_for_good(place: Place, answer: Answer, reason: str) -> None:
    """Check that there was one attempt and one sentence, and that the store says the same."""
    assert "Traceback" not in answer.err
    (sentence,) = (line for line in answer.err.splitlines() if line.startswith("error: "))
    assert len(sentence) < 500
    (run,) = children_of(client_of(place))
    assert (run.info.status, run.data.tags["mgmrn.stop_reason"]) == ("FAILED", reason)
    assert answer.err.count("epoch 1/") <= 1, "it is not tried again"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_loss_that_is_no_number_ends_the_run_at_once(place: Place, arguments: tuple[str, ...]) -> None:
    explosive = ("optimiser.name=sgd", "optimiser.head_lr=1e30", "optimiser.backbone_lr=1e30")
    sets = tuple(part for value in (*explosive, "schedule.learning_rate=constant") for part in ("--set", value))
    answer = place.run(*arguments, *sets)
    assert_failed_for_good(place, answer, "non-finite-loss")
    assert (answer.code, answer.json["status"]) == (1, "failed")
    assert [run["status"] for run in answer.json["runs"]] == ["failed"]
    assert "non-finite" in answer.err and "learning rate" in answer.err


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_picture_that_cannot_be_read_ends_the_run_which_starts_again_when_it_is_mended(
    place: Place, arguments: tuple[str, ...]
) -> None:
    pictures = sorted((place.folder / "data" / "TINY" / "images").rglob("*.png"))
    whole = {picture: picture.read_bytes() for picture in pictures}
    for picture in pictures:
        picture.write_bytes(whole[picture][:200])
    answer = place.run(*arguments)
    assert_failed_for_good(place, answer, "bad-input")
    assert answer.code == 2, "what is wrong is the input, found late"
    assert set(answer.json) == {"error", "where", "hint"}
    assert any(answer.json["where"].endswith(picture.name) for picture in pictures)

    for picture in pictures:
        picture.write_bytes(whole[picture])
    answer = place.run(*arguments)
    assert answer.code == 0, answer.err
    client = client_of(place)
    failed, finished = children_of(client)
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert_epochs_are_logged_once(client, finished, EPOCHS, *KEYS)
