"""Storage of runs: checkpoints are whole or absent, damaged ones are passed over, and a full or read-only disk is a sentence."""

import errno
import os
import shutil
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
from pipeline.train import checkpoints
from pipeline.train.checkpoints import kept_checkpoints, latest_whole, new_checkpoint
from pipeline.train.messages import Failure, record_failure, recorded_failure, reserve_room
from pipeline.train.placement import Placement
from pipeline.train.storage import StorageError, check_writable, explained
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
    with pytest.raises(StorageError) as caught, explained(Path("/shared/runs")):
        raise error
    assert str(caught.value) == sentence and isinstance(caught.value, ResourceError), "answered with exit code 3"
    other = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/file")
    with pytest.raises(PermissionError), explained(Path("/shared/runs")):
        raise other


@TMPFS
def test_a_probe_finds_a_full_disk_and_leaves_nothing(disk: Path) -> None:
    check_writable(disk / "runs")
    assert list(disk.iterdir()) == []
    filler = fill(disk)
    with pytest.raises(StorageError, match="is full"):
        check_writable(disk / "runs")
    assert list(disk.iterdir()) == [filler]


@TMPFS
def test_a_failure_can_be_noted_on_a_full_disk_where_room_was_reserved(disk: Path) -> None:
    """Without the room the worker raises what it met instead; else its run would look as if it had come to its end."""
    note, other = disk / "failure.json", disk / "other.json"
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


def write(run_folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        with new_checkpoint(run_folder, epoch) as folder:
            (folder / "state.pt").write_bytes(b"%d" % epoch * 100)
            (folder / "evaluation.npz").write_bytes(b"scores")


def cut(folder: Path) -> None:
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:50])


UNREADABLE = "manifest.json is missing or unreadable"
FLIPPED = b"3" * 99 + b"2"
"""Content of the third checkpoint with one bit flipped."""
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (shutil.rmtree, ""),
    "cut": (cut, "state.pt has 50 bytes instead of 100"),
    "a bit flipped": (lambda folder: (folder / "state.pt").write_bytes(FLIPPED), "state.pt is not as it was written"),
    "file missing": (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
    "manifest missing": (lambda folder: (folder / MANIFEST_FILE).unlink(), UNREADABLE),
    "manifest cut": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b'["state.pt"'), UNREADABLE),
    "manifest a list": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b'["state.pt"]'), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_checkpoint_before_a_damaged_or_absent_one_is_taken_with_a_sentence(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 2, 3)
    latest = kept_checkpoints(tmp_path)[-1]
    spoil, problem = DAMAGE[damage]
    spoil(latest.folder)
    said: list[str] = []
    found = latest_whole(tmp_path, 3, said.append)
    assert found is not None and found.epoch == 2
    state = f"damaged ({latest.folder}: {problem})" if problem else "missing"
    assert said == [f"the checkpoint of epoch 3 is {state}: going on from that of epoch 2"]


def test_without_a_whole_checkpoint_the_run_begins_again_with_a_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    assert latest_whole(tmp_path, 0, said.append) is None and said == [], "before the first epoch"
    write(tmp_path, 1, 2)
    for one in kept_checkpoints(tmp_path):
        cut(one.folder)
    assert latest_whole(tmp_path, 2, said.append) is None
    (sentence,) = said
    assert sentence.startswith("the checkpoint of epoch 2 is damaged")
    assert sentence.endswith("and there is no whole one before it: the run begins again")


def test_an_epoch_that_was_never_noted_is_trained_again(tmp_path: Path) -> None:
    """Else its figures would be missing for ever."""
    write(tmp_path, 1, 2)
    said: list[str] = []
    found = latest_whole(tmp_path, 1, said.append)
    assert found is not None and found.epoch == 1
    write(tmp_path, 2)
    found = latest_whole(tmp_path, 2, said.append)
    assert found is not None and (found.epoch, found.attempt) == (2, 2)
    assert said == []


def test_checkpoints_are_whole_and_in_order_and_a_writer_that_fails_or_is_killed_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), new_checkpoint(tmp_path, 1) as folder:
        (folder / "state.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, 9, 10, 2)
    for foreign in (".checkpoint_0123456789abcdef", "checkpoint_of_mine"):
        (tmp_path / foreign).mkdir()
    found = kept_checkpoints(tmp_path)
    assert [(one.epoch, one.damage()) for one in found] == [(2, None), (9, None), (10, None)]
    checkpoints.remove_unfinished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4 and not list(tmp_path.glob(".*"))


def test_the_latest_the_one_before_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.9, 5: 0.2}
    for epoch in scores:
        write(tmp_path, epoch)
        noted = {earlier: {"val/ausuc": scores[earlier]} for earlier in range(1, epoch + 1)}
        counting = checkpoints.counting_epoch("tune", noted)
        checkpoints.prune(tmp_path, checkpoints.worth_keeping(tmp_path, epoch, counting))
    assert [one.epoch for one in kept_checkpoints(tmp_path)] == [2, 4, 5]
    write(tmp_path, 5)
    checkpoints.prune(tmp_path, checkpoints.worth_keeping(tmp_path, 5, 4))
    last = max(path.name for path in tmp_path.iterdir())
    assert last == "checkpoint_000005_2", "the last attempt of an epoch"
    assert checkpoints.counting_epoch("final", {1: {"train/total": 1.0}, 2: {}}) == 2, "on final the last epoch counts"
