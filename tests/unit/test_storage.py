"""Storage of runs: checkpoints are whole or absent, damaged ones are passed over, and a full or read-only disk is a sentence."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.tune.schedulers import TrialScheduler

from mgmrn.checkpoint import save_atomically
from mgmrn.errors import ResourceError
from mgmrn.manifest import MANIFEST_FILE
from pipeline.storage import StorageError, StoragePath, check_writable, explained
from pipeline.train import checkpoints
from pipeline.train.checkpoints import kept_checkpoints, latest_whole, new_checkpoint
from pipeline.train.messages import Failure, record_failure, recorded_failure, reserve_room
from pipeline.train.placement import Placement
from pipeline.trials.runner import _Proposals, _Stops
from pipeline.trials.trial import TrialPlan, TrialReport
from tests.grids import write_grid
from tests.ray.small import SEARCH, write_small
from tests.tmpfs import TMPFS, fill, remounted

FULL = "the storage folder /shared/runs is full (make room there; the same command goes on from the last checkpoint)"
READ_ONLY = (
    "the storage folder /shared/runs cannot be written to: Read-only file system (make it writable, "
    "or name another with --storage; the same command goes on from the last checkpoint)"
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (OSError(errno.EROFS, "Read-only file system", "/shared/runs/x/spool.jsonl"), READ_ONLY),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(error: OSError, sentence: str) -> None:
    with pytest.raises(StorageError) as caught, explained(StoragePath("/shared/runs")):
        raise error
    assert str(caught.value) == sentence and isinstance(caught.value, ResourceError), "answered with exit code 3"
    other = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/file")
    with pytest.raises(PermissionError), explained(StoragePath("/shared/runs")):
        raise other


@TMPFS
def test_a_probe_finds_a_full_disk_and_leaves_nothing(disk: Path) -> None:
    check_writable(StoragePath.parse(disk / "runs"))
    assert list(disk.iterdir()) == []
    filler = fill(disk)
    with pytest.raises(StorageError, match="is full"):
        check_writable(StoragePath.parse(disk / "runs"))
    assert list(disk.iterdir()) == [filler]


@TMPFS
def test_a_failure_can_be_noted_on_a_full_disk_where_room_was_reserved(disk: Path) -> None:
    """Without the room the worker raises what it met instead; else its run would look as if it had come to its end."""
    note, other = StoragePath.parse(disk / "failure.json"), StoragePath.parse(disk / "other.json")
    reserve_room(note)
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        record_failure(other, Failure("storage", "full"))
    record_failure(note, Failure("storage", "full"))
    assert recorded_failure(note) == Failure("storage", "full")


@TMPFS
def test_a_checkpoint_that_does_not_fit_says_so_and_leaves_nothing(disk: Path) -> None:
    """Torch's own writer says that positions in the file differ."""
    with pytest.raises(OSError) as caught:
        save_atomically({"weights": torch.zeros(2**20)}, disk / "state.pt")
    assert caught.value.errno == errno.ENOSPC
    assert list(disk.iterdir()) == []


@TMPFS
def test_a_read_only_storage_is_refused_before_ray_is_started(
    disk: Path, tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    monkeypatch.setattr("pipeline.train.cluster.ray_session", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)
    experiment, *data = write_small(tmp_path)
    (tmp_path / "tiny-search.yaml").write_text(SEARCH)
    write_grid(tmp_path, name="tiny-grid")
    (tmp_path / "mlflow.db").write_bytes(tables.read_bytes())
    places = ("--storage", str(disk), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    with remounted(disk, "ro"):
        for verb, file in (("train", experiment), ("search", "tiny-search.yaml"), ("ablate", "tiny-grid.yaml")):
            code, answer, _ = asked(verb, file, *data, *places)
            assert code == 3, answer
            assert answer["error"] == f"the storage folder {disk} cannot be written to: {os.strerror(errno.EROFS)}"
            assert "--storage" in answer["hint"]
    assert list(disk.iterdir()) == []


def test_a_full_storage_ends_a_search_without_failing_a_trial() -> None:
    """Grids run through the same engine. What was open is ended as interrupted, so that the next call goes on with it."""
    failure = {key: str(value) for key, value in asdict(Failure("storage", "full", hint="make room")).items()}
    report = TrialReport(run=0, steps=1, failure=failure)
    unfair = "a full disk is no failure of the trial that met it first"
    director: Any = SimpleNamespace(reported=lambda number, report: pytest.fail(unfair))
    with ThreadPoolExecutor(1) as leftovers:
        proposals = _Proposals(director, leftovers)
        proposals.plans["one"] = TrialPlan(number=0, runs=(), placement=Placement(1, 1, 0))
        answer = _Stops(proposals).on_trial_result(None, SimpleNamespace(trial_id="one"), report.to_tune())  # type: ignore[arg-type]
    assert answer == TrialScheduler.STOP
    assert isinstance(proposals.error, StorageError) and str(proposals.error) == "full (make room)"


def write(run_folder: StoragePath, *epochs: int) -> None:
    for epoch in epochs:
        with new_checkpoint(run_folder, epoch) as folder:
            (folder / "state.pt").write_bytes(b"%d" % epoch * 100)
            (folder / "evaluation.npz").write_bytes(b"scores")


UNREADABLE = "manifest.json is missing or unreadable"
FLIPPED = b"3" * 99 + b"2"
"""Content of the third checkpoint with one bit flipped."""
DAMAGE: dict[str, tuple[Callable[[StoragePath], object], str]] = {
    "absent": (StoragePath.delete, ""),
    "cut": (lambda folder: (folder / "state.pt").write(b"3" * 50), "state.pt has 50 bytes instead of 100"),
    "a bit flipped": (lambda folder: (folder / "state.pt").write(FLIPPED), "state.pt is not as it was written"),
    "file missing": (lambda folder: (folder / "state.pt").delete(), "state.pt is missing"),
    "manifest missing": (lambda folder: (folder / MANIFEST_FILE).delete(), UNREADABLE),
    "manifest cut": (lambda folder: (folder / MANIFEST_FILE).write(b'["state.pt"'), UNREADABLE),
    "manifest a list": (lambda folder: (folder / MANIFEST_FILE).write(b'["state.pt"]'), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_checkpoint_before_a_damaged_or_absent_one_is_taken_with_a_sentence(
    storage: StoragePath, damage: str
) -> None:
    write(storage, 1, 2, 3)
    latest = kept_checkpoints(storage)[-1]
    spoil, problem = DAMAGE[damage]
    spoil(latest.folder)
    said: list[str] = []
    found = latest_whole(storage, 3, said.append)
    assert found is not None and found.epoch == 2
    state = f"damaged ({latest.folder}: {problem})" if problem else "missing"
    assert said == [f"the checkpoint of epoch 3 is {state}: going on from that of epoch 2"]


def test_without_a_whole_checkpoint_the_run_begins_again_with_a_sentence(storage: StoragePath) -> None:
    said: list[str] = []
    assert latest_whole(storage, 0, said.append) is None and said == [], "before the first epoch"
    write(storage, 1, 2)
    for one in kept_checkpoints(storage):
        (one.folder / "state.pt").write(b"half")
    assert latest_whole(storage, 2, said.append) is None
    (sentence,) = said
    assert sentence.startswith("the checkpoint of epoch 2 is damaged")
    assert sentence.endswith("and there is no whole one before it: the run begins again")


def test_an_epoch_that_was_never_noted_is_trained_again(storage: StoragePath) -> None:
    """Else its figures would be missing for ever."""
    write(storage, 1, 2)
    said: list[str] = []
    found = latest_whole(storage, 1, said.append)
    assert found is not None and found.epoch == 1
    write(storage, 2)
    found = latest_whole(storage, 2, said.append)
    assert found is not None and (found.epoch, found.attempt) == (2, 2)
    assert said == []


def test_checkpoints_are_in_order_and_a_writer_that_fails_or_is_killed_leaves_none_that_counts(
    storage: StoragePath,
) -> None:
    with pytest.raises(RuntimeError, match="no more"), new_checkpoint(storage, 1) as folder:
        (folder / "state.pt").write_bytes(b"half")
        raise RuntimeError("no more")
    assert storage.names() == []
    write(storage, 9, 10, 2)
    (storage / "checkpoint_of_mine" / "state.pt").write(b"")
    (storage / "checkpoint_000011_1" / "state.pt").write(b"what a killed process has written")
    assert [(one.epoch, one.damage()) for one in kept_checkpoints(storage)] == [
        *((epoch, None) for epoch in (2, 9, 10)),
        (11, UNREADABLE),
    ]
    checkpoints.remove_after(storage, 9)
    assert [one.epoch for one in kept_checkpoints(storage)] == [2, 9]


def test_the_latest_the_one_before_and_the_best_are_kept(storage: StoragePath) -> None:
    scores = {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.9, 5: 0.2}
    for epoch in scores:
        write(storage, epoch)
        noted = {earlier: {"val/ausuc": scores[earlier]} for earlier in range(1, epoch + 1)}
        counting = checkpoints.counting_epoch("tune", noted)
        checkpoints.prune(storage, checkpoints.worth_keeping(storage, epoch, counting))
    assert [one.epoch for one in kept_checkpoints(storage)] == [2, 4, 5]
    write(storage, 5)
    checkpoints.prune(storage, checkpoints.worth_keeping(storage, 5, 4))
    assert storage.names()[-1] == "checkpoint_000005_2", "the last attempt of an epoch"
    assert checkpoints.counting_epoch("final", {1: {"train/total": 1.0}, 2: {}}) == 2, "on final the last epoch counts"
