"""A tracking database that is lost in mid-run: one sentence at once, training goes on, and the next command tracks the result."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mgmrn.data.splits import load_tune
from pipeline.config.compose import load_experiment, values_of
from pipeline.errors import TrackingError
from pipeline.spool import Spool
from pipeline.tracking import sender as sender_module
from pipeline.tracking.store import TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell, make_cell
from pipeline.train.placement import Placement
from pipeline.train.spec import Calibration
from pipeline.train.tracked import Opening, cached_summary, finished_run, open_run, parent_run, send_leftovers
from tests.mlflow_server import Server
from tests.ray.small import write_small
from tests.tmpfs import TMPFS, small_disk

METRICS = {"val/ausuc": 0.5, "val/gzsl_h": 0.25}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "POLL_SECONDS": 0.002,
        "FIRST_PAUSE": 0.01,
        "LONGEST_PAUSE": 0.05,
        "GATHER_SECONDS": 0.0,
    }.items():
        monkeypatch.setattr(sender_module, name, seconds)
    for name in ("LOOK_UP_SECONDS", "DRAIN_SECONDS"):
        monkeypatch.setattr(tracked, name, 0.2)
    monkeypatch.setattr(tracked, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(tracked, "END_SECONDS", 0.2)


@dataclass
class Lab:
    """A run's cell, its storage and its database."""

    folder: Path
    """Of the database."""
    storage: Path
    cells: tuple[Cell, ...]
    said: list[str] = field(default_factory=list)
    connections: int = 0
    uri: str = ""
    """Of a server, in place of the database."""

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def connect(self) -> TrackingStore:
        """As another command: MLflow keeps the connections of a process to an address, so each has an address of its own."""
        if self.uri:
            return TrackingStore.connect(self.uri)
        self.connections += 1
        return TrackingStore.connect(f"sqlite:///{self.folder}{'/.' * self.connections}/mlflow.db")

    def launch(self, fault: Callable[[], None]) -> bool:
        """Every cell in one launch, without training; the fault hits the first one in mid-run. Whether all was tracked."""
        store = self.connect()
        with parent_run(store, self.storage, "key", "launch", {"mgmrn.kind": "launch"}) as launch:
            for cell in self.cells:
                self._run(store, cell, launch.run_id, fault if cell is self.cells[0] else None)
        return launch.is_tracked

    def _run(self, store: TrackingStore, cell: Cell, launch: str, fault: Callable[[], None] | None) -> None:
        spec = cell.spec(Path("/data"), self.storage, 1)
        tracker = open_run(store, cell, spec, Opening("study", launch, Placement(1, 1, 0)))
        spool = Spool(spec.spool_file)
        spool.append(1, {"train/loss": 1.0})
        if fault:
            until(lambda: bool(tracker.run_id) and store.logged_steps(tracker.run_id, "train/loss") == {1})
            assert not self.said
            fault()
        spool.append(2, {"train/loss": 0.5, **METRICS})
        if fault:
            until(lambda: bool(self.said), 30)
        tracker.finished(fitted())
        tracker.close()

    def assert_tracked_once(self) -> None:
        """The next command finds everything without training, once."""
        store = self.connect()
        assert send_leftovers(self.storage, store, 5) is None
        parents = store.own_runs("tags.`mgmrn.kind` = 'launch'")
        assert [run.status for run in parents] == ["FINISHED"]
        for cell in self.cells:
            run = finished_run(store, cell)
            assert run is not None
            assert cached_summary(cell, run).metrics == METRICS
            assert run.parent_run_id == parents[0].run_id
            assert [one.step for one in store.client.get_metric_history(run.run_id, "train/loss")] == [1, 2]
            found = store.client.get_run(run.run_id)
            assert found.data.params.keys() == values_of(cell.config).keys()
            assert [one.dataset.digest for one in found.inputs.dataset_inputs] == [cell.data.digest[:36]]
            assert store.read_text(run.run_id, "curve.csv") == "gamma\n"
        assert len(store.own_runs("tags.`mgmrn.kind` = 'run'")) == len(self.cells)
        calls = store.own_runs("")
        assert send_leftovers(self.storage, store, 5) is None and store.own_runs("") == calls


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def fitted() -> Any:
    evaluation = SimpleNamespace(result=SimpleNamespace(gamma=0.25))
    calibration = Calibration(epochs=2, gamma=0.25)
    return SimpleNamespace(
        evaluation=evaluation, reported=METRICS, checkpoint=Path("/checkpoint"), calibration=calibration
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    folder = tmp_path_factory.mktemp("data")
    write_small(folder)
    composed = load_experiment(str(folder / "small.yaml"))
    data = load_tune(folder / "data", composed.config.benchmark)
    return tuple(make_cell(composed, seed, data, None, "mgmrn") for seed in (0, 1))


@pytest.fixture
def lab(tmp_path: Path, tables: Path, cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path, tmp_path / "runs", cells)
    shutil.copy(tables, lab.database)

    def write_record(spec: Any, cell: Any, ended: Any) -> Path:
        spec.artifacts_folder.mkdir(exist_ok=True)
        (spec.artifacts_folder / "curve.csv").write_text("gamma\n")
        return cast(Path, spec.artifacts_folder)

    monkeypatch.setattr(tracked, "write_record", write_record)
    monkeypatch.setattr(tracked, "say", lab.said.append)
    return lab


def assert_told(lab: Lab, told: str, reason: str) -> None:
    """One sentence at once for the run that was hit, one at the end, no traceback."""
    at_once = [line for line in lab.said if "cannot be tracked now" in line]
    assert at_once[0].startswith(lab.cells[0].name) and reason in at_once[0]
    assert "Traceback" not in told
    errors = [line for line in told.splitlines() if line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ") and "give the same command again" in errors[0]


@pytest.mark.parametrize("left", ["nothing", "an empty file", "another database"])
def test_a_database_that_is_deleted_or_replaced_in_mid_run(
    lab: Lab, tables: Path, left: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault() -> None:
        lab.database.unlink()
        if left == "an empty file":
            lab.database.touch()
        elif left == "another database":
            shutil.copy(tables, lab.database)

    assert not lab.launch(fault)
    reasons = {
        "nothing": "the tracking database was removed",
        "an empty file": "readonly",
        "another database": "readonly",
    }
    assert_told(lab, capfd.readouterr().err, reasons[left])
    if left != "another database":
        shutil.copy(tables, lab.database)  # Making its tables takes seconds.
    lab.assert_tracked_once()


@TMPFS
def test_a_disk_of_the_database_that_fills_up_in_mid_run(
    lab: Lab, tmp_path: Path, tables: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        lab.folder = disk
        shutil.copy(tables, lab.database)
        assert not lab.launch(lambda: fill(disk))
        assert_told(lab, capfd.readouterr().err, "full")
        began = time.monotonic()
        with pytest.raises(TrackingError, match="No space left on device"):
            lab.connect()
        assert time.monotonic() - began < 5, "it is said at once"
        (disk / "ballast").unlink()
        lab.assert_tracked_once()


@pytest.mark.cluster
def test_a_database_that_another_process_locks_for_long(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    """MLflow waits 20 seconds for a lock at each attempt."""
    with closing(sqlite3.connect(lab.database)) as other:
        assert not lab.launch(lambda: other.execute("BEGIN EXCLUSIVE"))
        assert_told(lab, capfd.readouterr().err, "database is locked")
        with pytest.raises(TrackingError, match="locked"):
            lab.connect()
    lab.assert_tracked_once()


def may_write_everything() -> bool:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.touch(0o400)
        return os.access(file, os.W_OK)


@pytest.mark.skipif(may_write_everything(), reason="needs a user who is bound by permissions")
def test_a_database_whose_permission_is_removed(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    def forbid() -> None:
        lab.database.chmod(0o400)
        lab.folder.chmod(0o500)

    lab.storage.mkdir()
    try:
        assert not lab.launch(forbid)
        assert_told(lab, capfd.readouterr().err, "readonly")
        with pytest.raises(TrackingError, match="cannot be written"):
            lab.connect()
    finally:
        lab.folder.chmod(0o700)
        lab.database.chmod(0o600)
    lab.assert_tracked_once()


@pytest.mark.cluster
def test_a_server_that_loses_its_database_in_mid_run(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Server(tmp_path)
    lab.uri = server.uri
    server.start()
    try:

        def fault() -> None:
            server.kill()
            (tmp_path / "server.db").unlink()

        assert not lab.launch(fault)
        assert_told(lab, capfd.readouterr().err, "does not answer")
        server.start()
        lab.assert_tracked_once()
    finally:
        server.kill()


def fill(disk: Path) -> None:
    """Takes every byte that is left."""
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
