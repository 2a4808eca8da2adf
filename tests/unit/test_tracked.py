"""Opening a run while the tracking server is away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mgmrn.data.splits import load_tune
from pipeline.config.compose import load_experiment
from pipeline.errors import TrackingError
from pipeline.spool import Spool
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell, make_cell
from pipeline.train.placement import Placement
from pipeline.train.tracked import Opening, open_run
from tests.ray.small import write_small

AWAY = TrackingError("the tracking store failed: connection refused", "http://127.0.0.1:5000")


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    write_small(tmp_path)
    composed = load_experiment(str(tmp_path / "small.yaml"))
    return make_cell(composed, 0, load_tune(tmp_path / "data", composed.config.benchmark), None, "mgmrn")


@pytest.fixture
def store(tmp_path: Path, tables: Path) -> TrackingStore:
    shutil.copy(tables, tmp_path / "mlflow.db")
    return TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")


def refuse(store: TrackingStore, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the store fail at its next attempts to find a run; returns a list that grows with each attempt."""
    attempts: list[int] = []
    find = store.find_resumable

    def sometimes(*arguments: str) -> TrackedRun | None:
        attempts.append(1)
        if len(attempts) <= times:
            raise AWAY
        return find(*arguments)

    monkeypatch.setattr(store, "find_resumable", sometimes)
    monkeypatch.setattr(tracked, "PAUSE_SECONDS", 0.0)
    return attempts


def opening(store: TrackingStore) -> Opening:
    return Opening("study", store.create_parent("launch", {}), Placement(1, 1, 0))


def test_a_run_waits_a_moment_for_a_server_that_comes_back(
    tmp_path: Path,
    cell: Cell,
    store: TrackingStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    attempts = refuse(store, 3, monkeypatch)
    spec = cell.spec(tmp_path / "data", tmp_path / "runs", 1)
    tracker = open_run(store, cell, spec, opening(store))
    tracker.killed("test")
    tracker.close()
    assert len(attempts) == 4
    assert capsys.readouterr().err.count("the tracking server is away") == 1, "it is said once"
    assert store.get(tracker.run_id).status == "KILLED"


def test_then_it_begins_without_the_server_which_creates_it_later(
    tmp_path: Path, cell: Cell, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(store, 10**9, monkeypatch)
    monkeypatch.setattr(tracked, "LOOK_UP_SECONDS", 0.0)
    parent = opening(store)
    tracker = open_run(store, cell, cell.spec(tmp_path / "data", tmp_path / "runs", 1), parent)
    tracker.killed("test")
    tracker.close()
    run = store.get(tracker.run_id)
    assert (run.status, run.parent_run_id) == ("KILLED", parent.parent_run_id)


@pytest.mark.parametrize("deleted", [False, True])
def test_what_the_store_did_not_take_is_removed_only_where_its_user_deleted_the_run(
    tmp_path: Path, cell: Cell, store: TrackingStore, deleted: bool
) -> None:
    spec = cell.spec(tmp_path / "data", tmp_path / "runs", 1)
    tracker = open_run(store, cell, spec, opening(store))
    tracker.killed("test")
    tracker.close()
    spool, run_id = Spool(spec.spool_file), tracker.run_id
    spool.append_end("FINISHED", "finished")  # Not sent.
    store.set_tags(
        tracker.run_id, {"mgmrn.run_identity": "of another code"}
    )  # So that the store offers none to resume.
    if deleted:
        store.client.delete_run(run_id)
    again = open_run(store, cell, spec, opening(store))
    again.close()
    assert (again.run_id == run_id) is not deleted
