"""Faults of the storage of a run: a damaged or foreign checkpoint and a full disk, and the same command afterwards."""

import re
from pathlib import Path

import pytest
from mlflow.entities import Run

from mgmrn.checkpoint import CHECKPOINT_FILE, load_state, save_atomically
from pipeline.storage import StoragePath
from pipeline.train.checkpoints import Kept, kept_checkpoints, new_checkpoint
from tests.ray.command import Answer, Place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.tracked import assert_epochs_are_logged_once, children_of, client_of
from tests.recovery import time_recovery
from tests.tmpfs import TMPFS, fill

pytestmark = [pytest.mark.ray, pytest.mark.long]

EPOCHS = 4
TUNE = ("--split", "tune", "--set", f"schedule.epochs={EPOCHS}", "--json")


def run_folder_in(storage: Path) -> StoragePath:
    (folder,) = storage.glob("*.tune")
    return StoragePath.parse(folder)


def checkpoints(storage: Path) -> list[Kept]:
    return kept_checkpoints(run_folder_in(storage))


def finished_run(place: Place, answer: Answer) -> Run:
    """The only run, which is the one that was begun, with every epoch logged once."""
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err
    client = client_of(place)
    (run,) = children_of(client)
    assert run.info.status == "FINISHED"
    assert_epochs_are_logged_once(client, run, EPOCHS, "train/total", "val/ausuc")
    return run


@pytest.mark.timeout(900)
def test_after_a_damaged_latest_checkpoint_the_run_goes_on_from_the_one_before(place: Place) -> None:
    """Driver and workers are killed, and half of the latest checkpoint is lost with them."""
    arguments = ("train", *write_small(place.folder), *TUNE, *long_epochs(60))
    storage = place.folder / ".mgmrn" / "runs"
    running = place.start(*arguments)
    wait_until(lambda: len(place.epochs_noted()) >= 2, "the second epoch was noted", 400, running)
    running.kill()
    place.kill_all()
    noted = place.epochs_noted()
    assert len(noted) < EPOCHS, "the epochs are too short to be killed in the middle of one"
    latest = max(one for one in checkpoints(storage) if one.epoch <= noted[-1])
    assert latest.epoch == noted[-1]
    state = latest.folder / CHECKPOINT_FILE
    whole = state.read()
    assert whole is not None
    half = whole[: len(whole) // 2]
    state.write(half)

    again = place.start(*arguments)
    time_recovery("train: latest checkpoint damaged", lambda: len(place.epochs_noted()) > len(noted), again)
    answer = again.answer()
    run = finished_run(place, answer)
    assert run.data.tags["mgmrn.attempt"] == "2"
    sentence = (
        f"the checkpoint of epoch {noted[-1]} is damaged "
        f"({latest.folder}: {CHECKPOINT_FILE} has {len(half)} bytes instead of {len(whole)}): "
        f"going on from that of epoch {noted[-1] - 1}"
    )
    assert answer.err.count(sentence) == 1, answer.err
    assert place.epochs_noted()[len(noted) :] == list(range(noted[-1], EPOCHS + 1))
    assert all(one.damage() is None for one in checkpoints(storage))


def test_a_checkpoint_of_another_run_is_neither_used_nor_removed(place: Place) -> None:
    arguments = ("train", *write_small(place.folder), "--json", "--split", "tune")
    assert place.run(*arguments).code == 0
    run_folder = run_folder_in(place.folder / ".mgmrn" / "runs")
    for one in kept_checkpoints(run_folder):
        foreign = {**load_state(Path(one.folder.address) / CHECKPOINT_FILE), "run_identity": "another"}
        with new_checkpoint(run_folder, one.epoch) as folder:
            save_atomically(foreign, folder / CHECKPOINT_FILE)
    kept = kept_checkpoints(run_folder)
    client = client_of(place)
    (run,) = children_of(client)
    client.set_terminated(run.info.run_id, "KILLED")
    answer = place.run(*arguments)
    assert answer.code == 2 and "Traceback" not in answer.err, answer.err
    assert answer.json["error"].startswith("the checkpoint belongs to another run (another, wanted ")
    assert CHECKPOINT_FILE in answer.json["where"]
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    assert kept_checkpoints(run_folder) == kept and all(one.damage() is None for one in kept)


@TMPFS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("disk", [64], indirect=True)
def test_a_storage_that_fills_up_ends_the_run_with_a_sentence_and_lets_it_go_on_later(place: Place, disk: Path) -> None:
    """The disk is filled to the last byte in the middle of an epoch: no checkpoint fits, and neither does a note of that."""
    arguments = ("train", *write_small(place.folder), *TUNE, *long_epochs(60), "--storage", str(disk))
    running = place.start(*arguments)
    wait_until(lambda: any(disk.glob("*/checkpoint_000001_1/manifest.json")), "a first checkpoint", 400, running)
    filler = fill(disk)
    answer = running.answer()
    assert answer.code == 3, answer.err
    named = re.fullmatch("the storage folder (.*) is full", answer.json["error"])
    assert named and Path(named[1]).is_relative_to(disk)
    assert "the same command goes on from the last checkpoint" in answer.json["hint"]
    assert "Traceback" not in answer.err and answer.err.count("error: ") == 1
    filler.unlink()
    before = checkpoints(disk)
    assert before and all(one.damage() is None for one in before), "nothing that stood there may have suffered"

    again = place.start(*arguments)
    time_recovery("train: storage full", lambda: checkpoints(disk) != before, again)
    answer = again.answer()
    run = finished_run(place, answer)
    assert run.data.tags["mgmrn.attempt"] == "2"
    assert "damaged" not in answer.err
