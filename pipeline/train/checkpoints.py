"""Checkpoints of a run, as folders of its storage (docs/adr/0008): each appears whole, few are kept, a damaged one is passed over."""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mgmrn.manifest import find_damage, write_manifest
from pipeline.train.spec import Split

_NAME = re.compile(r"checkpoint_(\d+)_(\d+)")
_UNFINISHED = ".checkpoint_"


@dataclass(frozen=True, order=True)
class Kept:
    """A checkpoint in a run's storage; the order is by epoch and attempt, whatever the clocks of the hosts say."""

    epoch: int
    attempt: int
    """Above 1 for an epoch that was trained again."""
    folder: Path = field(compare=False)

    def damage(self) -> str | None:
        """Damage to its files in words; None where all are as they were written. Raises `OSError` when the disk fails, which may pass."""
        return find_damage(self.folder)


def kept_checkpoints(run_folder: Path) -> list[Kept]:
    """All checkpoints of a run, the earliest epoch first."""
    names = ((path, _NAME.fullmatch(path.name)) for path in run_folder.glob("checkpoint_*"))
    return sorted(Kept(int(match[1]), int(match[2]), path) for path, match in names if match)


@contextmanager
def new_checkpoint(run_folder: Path, epoch: int) -> Iterator[Path]:
    """A folder to be filled, which becomes the epoch's checkpoint when the block ends without an error, and is deleted otherwise."""
    attempt = 1 + max((one.attempt for one in kept_checkpoints(run_folder) if one.epoch == epoch), default=0)
    part = run_folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
    part.mkdir(parents=True)
    try:
        yield part
        write_manifest(part)
        os.rename(part, run_folder / f"checkpoint_{epoch:06d}_{attempt}")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def remove_unfinished(run_folder: Path) -> None:
    """Removes what a killed process was writing."""
    for part in run_folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(part, ignore_errors=True)


def prune(run_folder: Path, epochs: Collection[int]) -> None:
    """Removes the checkpoints of all other epochs, and of these all but the last attempt."""
    kept = kept_checkpoints(run_folder)
    last = {one.epoch: one for one in kept}
    for one in kept:
        if one.epoch not in epochs or one != last[one.epoch]:
            shutil.rmtree(one.folder, ignore_errors=True)


def worth_keeping(run_folder: Path, epoch: int, counting: int) -> set[int]:
    """Epochs whose checkpoints stay after that of `epoch`: this one, the one before, and the one that counts."""
    before = [one.epoch for one in kept_checkpoints(run_folder) if one.epoch < epoch]
    return {epoch, counting, *before[-1:]}


def counting_epoch(split: Split, epochs: Mapping[int, Mapping[str, float]]) -> int:
    """Epoch that stands for the run: on `tune` the first of those with the largest AUSUC, on `final` the last."""
    if split == "final":
        return max(epochs)
    return max(sorted(epochs), key=lambda epoch: epochs[epoch].get("val/ausuc", float("-inf")))


def latest_whole(run_folder: Path, last_epoch: int, note: Callable[[str], None]) -> Kept | None:
    """Checkpoint from which a run continues: the latest whole one up to the last epoch that was noted; None begins the run again.

    The epoch of a later one must be trained, and noted, again. `note` is told when it is not the checkpoint of the last epoch.
    """
    problem = f"the checkpoint of epoch {last_epoch} is missing"
    candidates = [one for one in kept_checkpoints(run_folder) if one.epoch <= last_epoch]
    for one in reversed(candidates):
        wrong = one.damage()
        if wrong is None:
            if one.epoch < last_epoch:
                note(f"{problem}: going on from that of epoch {one.epoch}")
            return one
        if one is candidates[-1]:
            problem = f"the checkpoint of epoch {one.epoch} is damaged ({one.folder}: {wrong})"
    if last_epoch:
        note(f"{problem}, and there is no whole one before it: the run begins again")
    return None
