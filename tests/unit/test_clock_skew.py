"""Clocks that are set while something runs, or that differ between hosts, change only the times that are shown."""

import os
import time
from pathlib import Path

import psutil
import pytest

from pipeline.driver import driver_is_dead, driver_tag
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.tracking.sender import Sender
from pipeline.tracking.store import TrackingStore
from pipeline.train.checkpoints import kept_checkpoints, latest_whole, new_checkpoint

HOUR = 3600.0


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_living_driver_does_not_die_of_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """psutil computes the time at which a process began from the present wall clock, so it moves with that."""
    tag = driver_tag()
    begun = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: begun(self) + seconds)
    assert driver_tag() == tag
    assert not driver_is_dead(tag)


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_run_that_is_gone_on_with_elsewhere_has_every_step_once_and_in_order(
    store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The second driver's clock is an hour off; it notes the last epoch of the first one again, and one more."""
    now, run_id = time.time, store.create_parent("run", {})
    spool = Spool(StoragePath.parse(tmp_path))
    for losses in (((0.3, 1), (0.2, 2)), ((0.21, 2), (0.1, 3))):
        for loss, epoch in losses:
            spool.append(epoch, {"train/total": loss})
        assert Sender(spool, run_id, store).start().drain(10) is None
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
    history = {one.step: one.value for one in store.client.get_metric_history(run_id, "train/total")}
    assert history == {1: 0.3, 2: 0.2, 3: 0.1}
    assert store.get(run_id).metrics["train/total"] == 0.1, "the value of the last step, not of the last time"


def test_a_run_that_ends_before_it_began_has_no_length(store: TrackingStore) -> None:
    """A length would predict what other runs cost."""
    run_id = store.create_parent("run", {})
    begun = store.client.get_run(run_id).info.start_time
    store.client.set_terminated(run_id, "FINISHED", end_time=begun - 1000 * int(HOUR))
    assert store.get(run_id).seconds is None


def test_the_latest_checkpoint_is_that_of_the_last_epoch_whatever_the_files_say(tmp_path: Path) -> None:
    """Written by hosts whose clocks differ: the later epochs look older."""
    run_folder = StoragePath.parse(tmp_path)
    for epoch in (1, 2, 3):
        with new_checkpoint(run_folder, epoch) as folder:
            (folder / "state.pt").write_bytes(b"state")
    for one in kept_checkpoints(run_folder):
        os.utime(one.folder.address, times=(HOUR * (9 - one.epoch),) * 2)
    found = latest_whole(run_folder, 3, lambda sentence: pytest.fail(sentence))
    assert found is not None and found.epoch == 3
