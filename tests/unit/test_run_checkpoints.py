"""Checkpoints in a run's storage: whole or not there, the right ones kept, damaged ones passed over with a word."""

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


def write_garbage(folder: Path) -> None:
    (folder / "evaluation.npz").write_bytes(b"\0" * 6)


def remove_a_file(folder: Path) -> None:
    (folder / "state.pt").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b'["state.pt"')


def make_a_list_of_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b'["state.pt"]')


DAMAGE: dict[Callable[[Path], None], str] = {
    cut: "state.pt has 50 bytes instead of 100",
    flip_a_bit: "state.pt is not as it was written",
    write_garbage: "evaluation.npz is not as it was written",
    remove_a_file: "state.pt is missing",
    remove_the_manifest: "manifest.json is missing or unreadable",
    garble_the_manifest: "manifest.json is missing or unreadable",
    make_a_list_of_the_manifest: "manifest.json is missing or unreadable",
}


def test_whole_ones_are_whole_and_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    write(tmp_path, 9, 10, 2)
    (tmp_path / "checkpoint_of_mine").mkdir()
    (tmp_path / "spool.jsonl").write_text("")
    found = kept_checkpoints(tmp_path)
    assert [one.epoch for one in found] == [2, 9, 10]
    assert [one.damage() for one in found] == [None] * 3


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_the_one_before_a_damaged_one_is_taken_and_said_so(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write(tmp_path, 1, 2, 3)
    latest = kept_checkpoints(tmp_path)[-1]
    damage(latest.folder)
    said: list[str] = []
    found = latest_whole(tmp_path, 3, said.append)
    assert found is not None and found.epoch == 2
    assert said == [
        f"the checkpoint of epoch 3 is damaged ({latest.folder}: {DAMAGE[damage]}): going on from that of epoch 2"
    ]


def test_a_latest_one_that_is_gone(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    shutil.rmtree(kept_checkpoints(tmp_path)[-1].folder)
    said: list[str] = []
    found = latest_whole(tmp_path, 3, said.append)
    assert found is not None and found.epoch == 2
    assert said == ["the checkpoint of epoch 3 is missing: going on from that of epoch 2"]


def test_without_a_whole_one_the_run_begins_again_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for one in kept_checkpoints(tmp_path):
        cut(one.folder)
    said: list[str] = []
    assert latest_whole(tmp_path, 2, said.append) is None
    (sentence,) = said
    assert sentence.startswith("the checkpoint of epoch 2 is damaged")
    assert sentence.endswith("and there is no whole one before it: the run begins again")


def test_there_is_nothing_to_say_of_a_whole_one_or_of_none_at_the_beginning(tmp_path: Path) -> None:
    said: list[str] = []
    assert latest_whole(tmp_path, 0, said.append) is None
    write(tmp_path, 1)
    found = latest_whole(tmp_path, 1, said.append)
    assert found is not None and found.epoch == 1
    assert said == []


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


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), new_checkpoint(tmp_path, 1) as folder:
        (folder / "state.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_what_a_killed_writer_leaves_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
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


def test_of_an_epoch_that_was_trained_again_the_last_attempt_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 2)
    prune(tmp_path, worth_keeping(tmp_path, 2, 1))
    assert names(tmp_path) == ["checkpoint_000001_1", "checkpoint_000002_2"]


def test_on_final_the_last_epoch_counts() -> None:
    assert counting_epoch("final", {1: {"train/total": 1.0}, 2: {}}) == 2
