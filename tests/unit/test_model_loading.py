"""A model is found by its file, by its run's id or name, and by its registered name; it is never unpickled."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mgmrn.checkpoint import MODEL_FILE
from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.models.predict import open_model
from pipeline.tracking.registry import register, set_alias, version_of_alias, versions
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from tests.exported import ATTRIBUTES, CLASS_ATTRIBUTES, GAMMA, NAMES, SEEN, write_model, write_pictures

RUN_NAME = "x.small.s0.1234"


@dataclass(frozen=True)
class Logged:
    """A registered model, and its names."""

    store: TrackingStore
    uri: str
    run_id: str
    names: dict[str, str]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Logged:
    folder = tmp_path_factory.mktemp("store")
    file = write_model(folder / "exported" / MODEL_FILE)
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id, tune = (
        store.create_parent(RUN_NAME, {"mgmrn.kind": "run", "mgmrn.split": split}) for split in ("final", "tune")
    )
    store.log_model(run_id, file, GAMMA, write_pictures(folder)[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    for run in (run_id, tune):
        store.finish(run, "FINISHED", "finished")
    set_alias(store, register(store, "mgmrn-X", uri, run_id, {"mgmrn.group_hash": "g"}, "of a test"), "champion")
    names = {"file": str(file), "folder": str(file.parent), "run id": run_id, "run name": RUN_NAME, "uri": uri}
    return Logged(store, uri, run_id, names | {"alias": "mgmrn-X@champion", "version": "mgmrn-X/1"})


@pytest.mark.parametrize("kind", ["file", "folder", "run id", "run name", "alias", "version", "uri"])
def test_every_name_leads_to_the_model(kind: str, logged: Logged) -> None:
    model = open_model(logged.names[kind], logged.store.uri)
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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bare", "the run bare has logged no model"),
        ("unknown", "there is no finished run called"),
        ("x'; drop table runs", "there is no finished run called"),
    ],
)
def test_runs_without_a_model_are_named(name: str, sentence: str, logged: Logged) -> None:
    called = logged.store.create_parent("bare", {"mgmrn.kind": "run"}) if name == "bare" else name
    with pytest.raises(UserError, match=sentence):
        open_model(called, logged.store.uri)


@pytest.mark.parametrize("name", ["mgmrn-X@none", "mgmrn-X/7", "mgmrn-Y@champion", "models:/nonsense", "0" * 32])
def test_names_that_the_store_lacks_are_refused(name: str, logged: Logged) -> None:
    with pytest.raises(TrackingError):
        open_model(name, logged.store.uri)


def test_a_missing_file_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no exported model.*gone\.pt"):
        open_model(str(tmp_path / "gone.pt"), f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
