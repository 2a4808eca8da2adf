"""Opening of a run while the tracking server is away."""

import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest

from pipeline.config.compose import load_experiment
from pipeline.errors import TrackingError
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.tracking.environment import origin_tags
from pipeline.tracking.store import NOTE_TAG, TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.tracked import Opening, ParentRun, RunTracker, open_run, parent_run
from pipeline.where import Where

AWAY = TrackingError("the tracking store failed: connection refused", "http://127.0.0.1:5000")


def refuse(store: TrackingStore, outcomes: Iterable[object], monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Gives the store's next attempts to find a run these outcomes; `DEFAULT` is what it finds."""
    find = Mock(wraps=store.find_resumable, side_effect=outcomes)
    monkeypatch.setattr(store, "find_resumable", find)
    monkeypatch.setattr(tracked, "PAUSE_SECONDS", 0.0)
    return find


def made_launch(store: TrackingStore, folder: Path) -> ParentRun:
    return ParentRun(store.create_parent("launch", {}), Spool(StoragePath.parse(folder / "launch")), origin_tags())


@pytest.fixture
def open_and_kill(tmp_path: Path, small_cell: Cell, store: TrackingStore) -> Callable[[], RunTracker]:
    """Opens a run and closes it without training."""
    where = Where(data_root=tmp_path / "data", storage=StoragePath.parse(tmp_path / "runs"))

    def run() -> RunTracker:
        opening = Opening(store, where, "study", made_launch(store, tmp_path), Placement(1, 1, 0))
        tracker = open_run(small_cell, opening)
        tracker.killed("test")
        tracker.close()
        return tracker

    return run


def test_a_description_says_how_a_run_ended_and_what_its_config_changes(tmp_path, small_cell, store) -> None:
    overrides = ["loss.scale=40", "model.backbone.weights=http://me:hunter2@host/w.pth"]
    composed = replace(small_cell.composed, overrides=load_experiment("synthetic", overrides).overrides)
    summary = "`small` on TINY with `loss.scale=40`, `model.backbone.weights=http://me:***@host/w.pth`"
    opening = Opening(
        store, Where(storage=StoragePath.parse(tmp_path)), "study", made_launch(store, tmp_path), Placement(1, 1, 0)
    )
    full = Failure("out-of-memory", "the device is full", hint="take a smaller batch")
    for end, said in (
        (lambda tracker: tracker.killed("interrupted"), "**interrupted** after 1 of 2 epochs"),
        (lambda tracker: tracker.failed(full), "**the device is full** (take a smaller batch) after 1 of 2 epochs"),
    ):
        tracker = open_run(replace(small_cell, composed=composed), opening)
        Spool(tracker.spec.run_folder).append(1, {"train/total": 1.0})
        end(tracker)
        tracker.close()
        assert store.get(tracker.run_id).tags[NOTE_TAG] == f"{said}\n\n{summary}"


def test_a_run_waits_a_moment_for_a_server_that_comes_back(open_and_kill, store, monkeypatch, capsys) -> None:
    find = refuse(store, [AWAY, AWAY, AWAY, DEFAULT], monkeypatch)
    tracker = open_and_kill()
    assert find.call_count == 4
    assert capsys.readouterr().err.count("the tracking server is away") == 1, "it is said once"
    assert store.get(tracker.run_id).status == "KILLED"


def test_mlflows_ui_gets_user_and_command_and_what_it_groups_by(open_and_kill, store, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "train", "cub100", "--tracking-uri", "http://me:hunter2@host"])
    data = store.client.get_run(open_and_kill().run_id).data
    assert data.tags["mlflow.user"]
    assert data.tags["mlflow.source.type"] == "LOCAL"
    assert data.tags["mlflow.source.name"] == "python -m pipeline train cub100"
    assert data.tags["mgmrn.command"] == ("python -m pipeline train cub100 --tracking-uri 'http://me:***@host'")
    assert data.tags.get("mlflow.source.git.commit", "none") == data.tags["mgmrn.code_sha"]
    names = {name: data.tags[f"mgmrn.{name}"] for name in ("variant", "benchmark", "split")}
    assert names.items() <= data.params.items()
    experiment = store.client.get_experiment(store.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_run_begins_without_a_server_that_stays_away_and_is_created_later(open_and_kill, store, monkeypatch) -> None:
    refuse(store, repeat(AWAY), monkeypatch)
    monkeypatch.setattr(tracked, "LOOK_UP_SECONDS", 0.0)
    run = store.get(open_and_kill().run_id)
    assert run.status == "KILLED" and store.get(run.parent_run_id).name == "launch"


@pytest.mark.parametrize("deleted", [False, True])
def test_a_run_that_is_not_wholly_tracked_is_removed_only_where_its_user_deleted_it(
    open_and_kill, store, deleted
) -> None:
    tracker = open_and_kill()
    run_id = tracker.run_id
    Spool(tracker.spec.run_folder).append_end("FINISHED", "finished")  # Not sent.
    store.set_tags(run_id, {"mgmrn.run_identity": "of another code"})  # So that the store offers none to resume.
    if deleted:
        store.client.delete_run(run_id)
    assert (open_and_kill().run_id == run_id) is not deleted


def test_a_launch_drops_the_claim_that_a_killed_driver_left_on_a_finished_run(store, tmp_path) -> None:
    storage = StoragePath.parse(tmp_path / "runs")
    claim = storage / "claims" / "finished.tune~0000"
    claim.write(f"{socket.gethostname()}:999999999:0.00".encode())
    with parent_run(store, storage, "key", "launch", {}, []):
        assert not claim.exists()
