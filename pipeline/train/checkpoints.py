"""Checkpoints of a run, as folders of its storage (docs/adr/0008): few are kept, one that is damaged or not whole is passed over."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mgmrn.manifest import find_damage, write_manifest
from pipeline.storage import StoragePath
from pipeline.train.spec import Split

_NAME = re.compile(r"checkpoint_(\d+)_(\d+)")


@dataclass(frozen=True, order=True)
class Kept:
    """A checkpoint in a run's storage; the order is by epoch and attempt, whatever the clocks of the hosts say."""

    epoch: int
    attempt: int
    """Above 1 for an epoch that was trained again."""
    folder: StoragePath = field(compare=False)

    def damage(self) -> str | None:
        """Damage to its files in words; None where all are as they were written. Raises `OSError` when the disk fails, which may pass."""
        with self.folder.fetched() as folder:
            return find_damage(folder)


def kept_checkpoints(run_folder: StoragePath) -> list[Kept]:
    """All checkpoints of a run, the earliest epoch first, and those that a killed process was writing, which have no manifest."""
    names = ((name, _NAME.fullmatch(name)) for name in run_folder.names())
    return sorted(Kept(int(match[1]), int(match[2]), run_folder / name) for name, match in names if match)


@contextmanager
def new_checkpoint(run_folder: StoragePath, epoch: int) -> Iterator[Path]:
    """A folder to be filled, which is the epoch's checkpoint when the block ends without an error, and is deleted otherwise."""
    attempt = 1 + max((one.attempt for one in kept_checkpoints(run_folder) if one.epoch == epoch), default=0)
    target = run_folder / f"checkpoint_{epoch:06d}_{attempt}"
    try:
        with target.filled() as folder:
            yield folder
            write_manifest(folder)
    except BaseException:
        with suppress(OSError):
            target.delete()
        raise


def remove_after(run_folder: StoragePath, epoch: int) -> None:
    """Removes the checkpoints of later epochs, which are trained again, and what a killed process was writing."""
    for one in kept_checkpoints(run_folder):
        if one.epoch > epoch:
            one.folder.delete()


def prune(run_folder: StoragePath, epochs: Collection[int]) -> None:
    """Removes the checkpoints of all other epochs, and of these all but the last attempt."""
    kept = kept_checkpoints(run_folder)
    last = {one.epoch: one for one in kept}
    for one in kept:
        if one.epoch not in epochs or one != last[one.epoch]:
            one.folder.delete()


def worth_keeping(run_folder: StoragePath, epoch: int, counting: int) -> set[int]:
    """Epochs whose checkpoints stay after that of `epoch`: this one, the one before, and the one that counts."""
    before = [one.epoch for one in kept_checkpoints(run_folder) if one.epoch < epoch]
    return {epoch, counting, *before[-1:]}


def counting_epoch(split: Split, epochs: Mapping[int, Mapping[str, float]]) -> int:
    """Epoch that stands for the run: on `tune` the first of those with the largest AUSUC, on `final` the last."""
    if split == "final":
        return max(epochs)
    return max(sorted(epochs), key=lambda epoch: epochs[epoch].get("val/ausuc", float("-inf")))


def latest_whole(run_folder: StoragePath, last_epoch: int, note: Callable[[str], None]) -> Kept | None:
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
