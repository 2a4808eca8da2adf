"""What a look into the database finds is what MLflow finds; where it cannot look, it finds nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.tracking.database_glance import DatabaseGlance
from pipeline.tracking.store import TRAIN, TrackingStore

TAGS = {"mgmrn.config_hash": "h1", "mgmrn.split": "tune", "mgmrn.result": "{}", "mgmrn.calibration": "none"}


@pytest.fixture
def uri(tmp_path: Path, tables: Path) -> str:
    shutil.copy(tables, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def make(store: TrackingStore, status: str = "FINISHED", **tags: str) -> str:
    run_id = store.create_parent("a run", TAGS | tags)
    store.finish(run_id, status, "why")
    return run_id


def test_finds_what_the_store_finds(uri: str) -> None:
    store, glance = TrackingStore.connect(uri), DatabaseGlance(uri, TRAIN)
    assert glance.find_finished("h1", "tune") is None
    make(store)
    make(store, status="FAILED")
    make(store, **{"mgmrn.config_hash": "h2"})
    TrackingStore.connect(uri, "mgmrn/other")
    latest = make(store, **{"mgmrn.result": '{"gamma": 1}'})
    for config_hash, split in (("h1", "tune"), ("h2", "tune"), ("h1", "final"), ("h3", "tune")):
        wanted, found = store.find_finished(config_hash, split), glance.find_finished(config_hash, split)
        assert (wanted is None) == (found is None)
        if wanted and found:
            assert (found.run_id, found.name, found.status, found.tags) == (
                wanted.run_id,
                wanted.name,
                wanted.status,
                wanted.tags,
            )
    found = glance.find_finished("h1", "tune")
    assert found is not None and found.run_id == latest


def test_a_run_that_was_deleted_is_not_found(uri: str) -> None:
    store, glance = TrackingStore.connect(uri), DatabaseGlance(uri, TRAIN)
    first, second = make(store), make(store)
    store.client.delete_run(second)
    found = glance.find_finished("h1", "tune")
    assert found is not None and found.run_id == first
    store.client.delete_experiment(store.experiment_id)
    assert glance.find_finished("h1", "tune") is None


def test_runs_of_another_experiment_are_not_found(uri: str) -> None:
    make(TrackingStore.connect(uri, "mgmrn/search/x"))
    assert DatabaseGlance(uri, TRAIN).find_finished("h1", "tune") is None


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_database_of_mlflows_holds_nothing_and_is_left_as_it_is(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "mlflow.db"
    if content is not None:
        file.write_bytes(content)
    assert DatabaseGlance(f"sqlite:///{file}", TRAIN).find_finished("h1", "tune") is None
    assert file.exists() is (content is not None)
    assert content is None or file.read_bytes() == content
