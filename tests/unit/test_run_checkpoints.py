"""Checkpoints in a run's storage: whole or absent, the right ones kept, damaged ones passed over with a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mgmrn.manifest import MANIFEST_FILE
from pipeline.train.checkpoints import (
    counting_epoch,
    kept_checkpoints,
    latest_whole,
    new_checkpoint,
    prune,
    remove_unfinished,
    worth_keeping,
)


def write(run_folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        with new_checkpoint(run_folder, epoch) as folder:
            (folder / "state.pt").write_bytes(b"%d" % epoch * 100)
            (folder / "evaluation.npz").write_bytes(b"scores")


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in run_folder.iterdir())


def cut(folder: Path) -> None:
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:50])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[70] ^= 1
    (folder / "state.pt").write_bytes(content)


UNREADABLE = "manifest.json is missing or unreadable"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, "state.pt has 50 bytes instead of 100"),
    "a bit flipped": (flip_a_bit, "state.pt is not as it was written"),
    "file missing": (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
    "manifest missing": (lambda folder: (folder / MANIFEST_FILE).unlink(), UNREADABLE),
    "manifest cut": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b'["state.pt"'), UNREADABLE),
    "manifest a list": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b'["state.pt"]'), UNREADABLE),
}


def test_checkpoints_are_whole_and_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    write(tmp_path, 9, 10, 2)
    (tmp_path / "checkpoint_of_mine").mkdir()
    (tmp_path / "spool.jsonl").write_text("")
    found = kept_checkpoints(tmp_path)
    assert [(one.epoch, one.damage()) for one in found] == [(2, None), (9, None), (10, None)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_taken_with_a_sentence(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 2, 3)
    latest = kept_checkpoints(tmp_path)[-1]
    spoil, problem = DAMAGE[damage]
    spoil(latest.folder)
    said: list[str] = []
    found = latest_whole(tmp_path, 3, said.append)
    assert found is not None and found.epoch == 2
    assert said == [f"the checkpoint of epoch 3 is damaged ({latest.folder}: {problem}): going on from that of epoch 2"]


def test_the_checkpoint_before_an_absent_one_is_taken_with_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    shutil.rmtree(kept_checkpoints(tmp_path)[-1].folder)
    said: list[str] = []
    found = latest_whole(tmp_path, 3, said.append)
    assert found is not None and found.epoch == 2
    assert said == ["the checkpoint of epoch 3 is missing: going on from that of epoch 2"]


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


def test_a_writer_that_fails_or_is_killed_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), new_checkpoint(tmp_path, 1) as folder:
        (folder / "state.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []
    write(tmp_path, 1)
    (tmp_path / ".checkpoint_0123456789abcdef").mkdir()
    assert len(kept_checkpoints(tmp_path)) == 1
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint_000001_1"]


def test_the_latest_the_one_before_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.9, 5: 0.2}
    for epoch in scores:
        write(tmp_path, epoch)
        noted = {earlier: {"val/ausuc": scores[earlier]} for earlier in range(1, epoch + 1)}
        prune(tmp_path, worth_keeping(tmp_path, epoch, counting_epoch("tune", noted)))
    assert [one.epoch for one in kept_checkpoints(tmp_path)] == [2, 4, 5]
    assert counting_epoch("final", {1: {"train/total": 1.0}, 2: {}}) == 2, "on final the last epoch counts"


def test_of_an_epoch_that_was_trained_again_the_last_attempt_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 2)
    prune(tmp_path, worth_keeping(tmp_path, 2, 1))
    assert names(tmp_path) == ["checkpoint_000001_1", "checkpoint_000002_2"]
