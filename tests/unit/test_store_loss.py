"""A tracking store that is lost or unreachable in mid-run: one sentence, training goes on, the next command tracks the result."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException

from pipeline.config.compose import values_of
from pipeline.errors import TrackingError
from pipeline.interruption import Interruption
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.tracking import sender as sender_module
from pipeline.tracking.store import NOTE_TAG, TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell
from pipeline.train.placement import Placement
from pipeline.train.spec import Calibration
from pipeline.train.tracked import Opening, ParentRun, cached_summary, open_run, parent_run, send_leftovers
from pipeline.where import Where
from tests.finished_grid import FinishedGrid
from tests.mlflow_server import Server
from tests.ray.command import wait_until
from tests.tmpfs import TMPFS, fill, small_disk

METRICS = {"val/ausuc": 0.5, "val/gzsl_h": 0.25, "val/zsl_t1": 0.75}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoragePath, "poll_seconds", 0.002)
    sending = {"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.05, "GATHER_SECONDS": 0.0}
    tracking = {"LOOK_UP_SECONDS": 0.2, "DRAIN_SECONDS": 0.2, "PAUSE_SECONDS": 0.02, "END_SECONDS": 0.2}
    for module, pauses in ((sender_module, sending), (tracked, tracking)):
        for name, seconds in pauses.items():
            monkeypatch.setattr(module, name, seconds)


@dataclass
class Lab:
    folder: Path
    """Folder of the database."""
    storage: Path
    cells: list[Cell]
    capfd: pytest.CaptureFixture[str]
    said: list[str] = field(default_factory=list)
    connections: int = 0
    uri: str = ""
    """Address of a server that replaces the database."""

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def connect(self) -> TrackingStore:
        """Connect as another command would, by another spelling of the address, since MLflow shares the connections of an address."""
        if self.uri:
            return TrackingStore.connect(self.uri)
        self.connections += 1
        return TrackingStore.connect(f"sqlite:///{self.folder}{'/.' * self.connections}/mlflow.db")

    def lose(self, fault: Callable[[], object], reason: str) -> None:
        """Run every cell in one launch, without training, the first one with the fault, which is told at once and at the end."""
        store, data = self.connect(), [cell.data for cell in self.cells]
        with parent_run(
            store, StoragePath.parse(self.storage), "key", "launch", {"mgmrn.kind": "launch"}, data
        ) as launch:
            for cell in self.cells:
                self._run(store, cell, launch, fault if cell is self.cells[0] else None)
        assert not launch.is_tracked
        at_once = next(line for line in self.said if "cannot be tracked now" in line)
        assert at_once.startswith(self.cells[0].name) and reason in at_once
        (error,) = [line for line in self.said if line.startswith("error: ")]
        assert "give the same command again" in error and self.capfd.readouterr().err == ""

    def _run(self, store: TrackingStore, cell: Cell, launch: ParentRun, fault: Callable[[], object] | None) -> None:
        where = Where(data_root=Path("/data"), storage=StoragePath.parse(self.storage))
        tracker = open_run(cell, Opening(store, where, "study", launch, Placement(1, 1, 0)))
        spool = Spool(tracker.spec.run_folder)
        spool.append(1, {"train/loss": 1.0})
        if fault:
            wait_until(lambda: tracker.run_id and store.logged_steps(tracker.run_id, "train/loss") == {1}, "it is sent")
            assert not self.said
            fault()
        spool.append(2, {"train/loss": 0.5, **METRICS})
        if fault:
            wait_until(lambda: bool(self.said), "the problem is told")
        evaluation = SimpleNamespace(result=SimpleNamespace(gamma=0.25))
        end = {
            "epoch": 2,
            "reported": METRICS,
            "checkpoint": StoragePath("/checkpoint"),
            "calibration": Calibration(epochs=2, gamma=0.25),
        }
        tracker.finished(cast(Any, SimpleNamespace(evaluation=evaluation, **end)))
        tracker.close()

    def assert_tracked_once(self) -> None:
        """Assert that the next command has everything in the store once, without training."""
        store = self.connect()
        assert send_leftovers(StoragePath.parse(self.storage), store, 5) is None
        parents = store.own_runs("tags.`mgmrn.kind` = 'launch'")
        assert [run.status for run in parents] == ["FINISHED"]
        used = store.client.get_run(parents[0].run_id).inputs.dataset_inputs
        assert [one.dataset.digest for one in used] == [self.cells[0].data.digest[:36]], "one for all cells"
        for cell in self.cells:
            run = store.find_finished(cell.config_hash, cell.split)
            assert run is not None
            assert cached_summary(cell, run).metrics == METRICS
            assert run.parent_run_id == parents[0].run_id
            assert [one.step for one in store.client.get_metric_history(run.run_id, "train/loss")] == [1, 2]
            found = store.client.get_run(run.run_id)
            assert found.data.params.keys() == {*values_of(cell.config), "variant", "benchmark", "split"}
            assert [one.dataset.digest for one in found.inputs.dataset_inputs] == [cell.data.digest[:36]]
            figures = "**H 25.0, T1 75.0, AUSUC 50.0** in percent on validation images"
            assert run.tags[NOTE_TAG] == f"{figures}\n\nepoch 2 and γ 0.25, the best of 2\n\n`small` on TINY"
            assert store.read_text(run.run_id, "curve.csv") == "gamma\n"
        assert len(store.own_runs("tags.`mgmrn.kind` = 'run'")) == len(self.cells)
        calls = store.own_runs("")
        assert send_leftovers(StoragePath.parse(self.storage), store, 5) is None and store.own_runs("") == calls


@pytest.fixture
def lab(
    tmp_path: Path, tables: Path, finished_grid: FinishedGrid, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Lab:  # fmt: skip
    lab = Lab(tmp_path, tmp_path / "runs", [cell.tune for cell in finished_grid.cells["base"][:2]], capfd)
    shutil.copy(tables, lab.database)

    def write_record(folder: Path, cell: Any, ended: Any) -> None:
        (folder / "curve.csv").write_text("gamma\n")

    monkeypatch.setattr(tracked, "write_record", write_record)
    monkeypatch.setattr(tracked, "say", lab.said.append)
    return lab


@pytest.mark.parametrize(
    ("left", "reason"),
    [("nothing", "the tracking database was removed"), ("an empty file", "readonly"), ("another database", "readonly")],
)
def test_a_database_that_is_deleted_or_replaced_in_mid_run(lab: Lab, tables: Path, left: str, reason: str) -> None:
    def fault() -> None:
        lab.database.unlink()
        if left == "an empty file":
            lab.database.touch()
        elif left == "another database":
            shutil.copy(tables, lab.database)

    lab.lose(fault, reason)
    if left != "another database":
        shutil.copy(tables, lab.database)  # MLflow needs seconds to create its tables.
    lab.assert_tracked_once()


@TMPFS
def test_a_disk_of_the_database_that_fills_up_in_mid_run(lab: Lab, tmp_path: Path, tables: Path) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        lab.folder = disk
        shutil.copy(tables, lab.database)
        lab.lose(lambda: fill(disk), "full")
        began = time.monotonic()
        with pytest.raises(TrackingError, match="No space left on device"):
            lab.connect()
        assert time.monotonic() - began < 5, "the error comes at once"
        (disk / "filler").unlink()
        lab.assert_tracked_once()


@pytest.mark.long
@pytest.mark.cluster
def test_a_database_that_another_process_locks_for_long(lab: Lab) -> None:
    """MLflow waits 20 seconds for a lock at each attempt."""
    with closing(sqlite3.connect(lab.database)) as other:
        lab.lose(lambda: other.execute("BEGIN EXCLUSIVE"), "database is locked")
        with pytest.raises(TrackingError, match="locked"):
            lab.connect()
    lab.assert_tracked_once()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_database_whose_permission_is_removed(lab: Lab) -> None:
    def forbid() -> None:
        lab.database.chmod(0o400)
        lab.folder.chmod(0o500)

    lab.storage.mkdir()
    try:
        lab.lose(forbid, "readonly")
        with pytest.raises(TrackingError, match="cannot be written"):
            lab.connect()
    finally:
        lab.folder.chmod(0o700)
        lab.database.chmod(0o600)
    lab.assert_tracked_once()


@pytest.mark.long
@pytest.mark.cluster
def test_a_server_that_loses_its_database_in_mid_run(lab: Lab, tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        lab.uri = server.uri

        def fault() -> None:
            server.kill()
            (tmp_path / "server.db").unlink()

        lab.lose(fault, "does not answer")
        server.start()
        lab.assert_tracked_once()


def test_a_launch_that_ends_while_the_store_is_unreachable_is_completed_by_the_next_command(
    tmp_path: Path, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    fail = Mock(side_effect=MlflowException("connection refused"))
    with parent_run(store, StoragePath.parse(storage), "key", "launch", {}, []) as launch:
        for method in ("log_batch", "set_terminated", "log_artifacts", "get_metric_history"):
            monkeypatch.setattr(store.client, method, fail)
        launch.spool.append(0, {"val/ausuc/mean": 0.5})
        with launch.artifacts() as files:
            (files / "best.yaml").write_text("a: 1\n")
    told = capsys.readouterr().err
    assert told.startswith("error: a run is not wholly tracked") and told.count("\n") == 1
    assert not launch.is_tracked
    monkeypatch.undo()
    assert store.get(launch.run_id).status == "RUNNING"
    send_leftovers(StoragePath.parse(storage), store, 5)
    run = store.get(launch.run_id)
    assert (run.status, run.tags["mgmrn.stop_reason"]) == ("FINISHED", "finished")
    assert run.metrics == {"val/ausuc/mean": 0.5}
    assert store.read_text(launch.run_id, "best.yaml") == "a: 1\n"


def test_a_launch_that_is_interrupted_is_closed_and_leaves_nothing(tmp_path: Path, store: TrackingStore) -> None:
    with (
        pytest.raises(Interruption),
        parent_run(store, StoragePath.parse(tmp_path / "runs"), "key", "launch", {}, []) as launch,
    ):
        assert list((tmp_path / "runs").glob("launch.*"))
        raise Interruption(signal.SIGINT)
    assert store.get(launch.run_id).status == "KILLED"
    assert not list((tmp_path / "runs").glob("launch.*"))
    with (
        pytest.raises(Interruption),
        parent_run(store, StoragePath.parse(tmp_path / "runs"), "key", "launch", {}, []) as launch,
    ):
        # Compiled code that a signal's handler interrupts, such as Ray's, raises a SystemError from it.
        raise SystemError("returned a result with an exception set") from Interruption(signal.SIGTERM)
    run = store.get(launch.run_id)
    assert (run.status, run.tags["mgmrn.stop_reason"]) == ("KILLED", "terminated")
