"""A model is found by its file, its run's id or name, and its name in the registry, and never unpickled."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mgmrn.checkpoint import MODEL_FILE
from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.models.predict import open_model
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.registry import register, set_alias, version_of_alias, versions
from pipeline.tracking.store import TrackingStore
from tests.exported import ATTRIBUTES, CLASS_ATTRIBUTES, GAMMA, NAMES, SEEN, write_model, write_pictures


@dataclass(frozen=True)
class Logged:
    store: TrackingStore
    run_id: str
    uri: str


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("exported") / MODEL_FILE)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, file: Path, tables: Path) -> Logged:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id = store.create_parent("x.small.s0.1234", {"mgmrn.kind": "run", "mgmrn.split": "final"})
    tune = store.create_parent("x.small.s0.1234", {"mgmrn.kind": "run", "mgmrn.split": "tune"})
    store.log_model(run_id, file, GAMMA, write_pictures(folder)[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    for run in (run_id, tune):
        store.finish(run, "FINISHED", "finished")
    version = register(store, "mgmrn-X", uri, run_id, {"mgmrn.group_hash": "g"}, "of a test")
    set_alias(store, version, "champion")
    return Logged(store, run_id, uri)


@pytest.mark.parametrize("name", ["file", "folder", "run id", "run name", "alias", "version", "uri"])
def test_every_name_leads_to_the_model(name: str, file: Path, logged: Logged) -> None:
    called = {
        "file": str(file),
        "folder": str(file.parent),
        "run id": logged.run_id,
        "run name": "x.small.s0.1234",
        "alias": "mgmrn-X@champion",
        "version": "mgmrn-X/1",
        "uri": logged.uri,
    }[name]
    model = open_model(called, logged.store.uri)
    assert (model.class_names, model.attribute_names, model.gamma) == (NAMES, ATTRIBUTES, GAMMA)
    np.testing.assert_array_equal(model.class_attributes, CLASS_ATTRIBUTES)
    np.testing.assert_array_equal(model.seen, SEEN)
    assert not model.network.training


def test_a_run_is_registered_once(logged: Logged) -> None:
    again = register(logged.store, "mgmrn-X", logged.uri, logged.run_id, {}, "")
    assert [one.number for one in versions(logged.store, "mgmrn-X")] == [again.number] == ["1"]
    assert version_of_alias(logged.store, "mgmrn-X", "champion") == again
    assert version_of_alias(logged.store, "mgmrn-X", "candidate") is None
    assert versions(logged.store, "mgmrn-Y") == []


def test_a_run_without_a_model(logged: Logged) -> None:
    bare = logged.store.create_parent("bare", {"mgmrn.kind": "run"})
    with pytest.raises(UserError, match="the run bare has logged no model"):
        open_model(bare, logged.store.uri)


@pytest.mark.parametrize("name", ["nobody", "x'; drop table runs"])
def test_an_unknown_name(name: str, logged: Logged) -> None:
    with pytest.raises(UserError, match="there is no finished run called"):
        open_model(name, logged.store.uri)


@pytest.mark.parametrize("name", ["mgmrn-X@nobody", "mgmrn-X/7", "mgmrn-Y@champion", "models:/nonsense", "0" * 32])
def test_what_the_store_does_not_have(name: str, logged: Logged) -> None:
    with pytest.raises(TrackingError):
        open_model(name, logged.store.uri)


def test_a_missing_file_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no exported model.*gone\.pt"):
        open_model(str(tmp_path / "gone.pt"), f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"network": torch.nn.Linear(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="plain value"):
        open_model(str(tmp_path / "model.pt"), "")
