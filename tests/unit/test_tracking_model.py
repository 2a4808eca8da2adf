"""A logged model answers as the network does, as pyfunc also where `pipeline` does not exist; names that lead to one."""

import base64
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from PIL import Image

from mgmrn.errors import UserError
from pipeline.databases import sqlite_file
from pipeline.errors import TrackingError
from pipeline.models.predict import open_model
from pipeline.tracking.registry import register, set_alias, version_of_alias, versions
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from pipeline.train.spec import MODEL_FILE
from tests.exported import (
    ATTRIBUTES,
    CLASS_ATTRIBUTES,
    GAMMA,
    NAMES,
    SEEN,
    array_file,
    scores_of,
    write_model,
    write_pictures,
)

RUN_NAME = "x.small.s0.1234"
BLACK = array_file(np.zeros((64, 64), np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@dataclass(frozen=True)
class Logged:
    store: TrackingStore
    uri: str
    run_id: str
    names: dict[str, str]

    @property
    def folder(self) -> str:
        """Folder of the model, as MLflow loads it without a server."""
        return f"{sqlite_file(self.store.uri).parent}/mlruns/models/{self.uri.removeprefix('models:/')}/artifacts"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path], tables: Path) -> Logged:
    """The model, which was logged at the second attempt, in a store that was moved afterwards."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(tables, folder / "mlflow.db")
    file = write_model(folder / "exported" / MODEL_FILE)
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id, tune = (
        store.create_parent(RUN_NAME, {"mgmrn.kind": "run", "mgmrn.split": split}) for split in ("final", "tune")
    )

    with pytest.MonkeyPatch.context() as patch:
        # MLflow reads the names of all installed files to warn of other versions than those of the model.
        patch.setattr("importlib_metadata.packages_distributions", dict)
        with patch.context() as failing, pytest.raises(TrackingError, match="went away"):
            failing.setattr("mlflow.pyfunc.save_model", Mock(side_effect=MlflowException("the server went away")))
            store.log_model(run_id, file, GAMMA, pictures[0])
        store.log_model(run_id, file, GAMMA, pictures[0])
    folder = folder.rename(folder.with_name("moved"))
    file, store = folder / "exported" / MODEL_FILE, TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    uri = store.get(run_id).tags[MODEL_TAG]
    store.log_model(run_id, file, GAMMA, pictures[0])
    assert store.get(run_id).tags[MODEL_TAG] == uri
    model = store.client.get_logged_model(uri.removeprefix("models:/"))
    assert (str(model.status), model.source_run_id, model.experiment_id) == ("READY", run_id, store.experiment_id)
    for run in (run_id, tune):
        store.finish(run, "FINISHED", "finished")
    set_alias(store, register(store, "mgmrn-X", uri, run_id, {"mgmrn.group_hash": "g"}, "of a test"), "champion")
    names = {"file": str(file), "folder": str(file.parent), "run id": run_id, "run name": RUN_NAME, "uri": uri}
    return Logged(store, uri, run_id, names | {"alias": "mgmrn-X@champion", "version": "mgmrn-X/1"})


@pytest.fixture(scope="module")
def model(logged: Logged) -> PyFuncModel:
    return mlflow.pyfunc.load_model(logged.folder)


def ask(model: PyFuncModel, *contents: object, **params: object) -> pd.DataFrame:
    return model.predict(pd.DataFrame({"image": list(contents)}), params=params or None)


@pytest.mark.ray
def test_it_answers_as_the_network_does_without_this_repository(logged: Logged, pictures: Any, tmp_path: Path) -> None:
    code = """
import json, sys
import importlib_metadata, mlflow, pandas as pd
importlib_metadata.packages_distributions = dict  # It takes seconds, to warn of other versions.
folder, *paths = sys.argv[1:]
model = mlflow.pyfunc.load_model(folder)
images = pd.DataFrame({"image": [open(path, "rb").read() for path in paths]})
print(json.dumps({
    "answers": [model.predict(images, params=params).to_dict("list") for params in (None, {"gamma": 0.0, "top_k": 2})],
    "inputs": model.metadata.get_input_schema().to_dict(),
    "modules": [name for name in ("pipeline", "ray") if name in sys.modules],
    "mgmrn": sys.modules["mgmrn"].__file__,
}))
"""
    command = [sys.executable, "-c", code, logged.folder, *map(str, pictures)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for answer, gamma, count in zip(found["answers"], (GAMMA, 0.0), (4, 2), strict=True):
        wanted = scores_of(pictures) - gamma * SEEN
        order = np.argsort(-wanted, axis=1)[:, :count]
        assert answer["classes"] == [[NAMES[i] for i in row] for row in order]
        np.testing.assert_allclose(answer["scores"], np.take_along_axis(wanted, order, axis=1), atol=1e-4)
    assert found["modules"] == []
    repository = Path(__file__).resolve().parents[2]
    assert not Path(found["mgmrn"]).is_relative_to(repository)
    assert not (repository / "mlruns").exists()
    assert found["inputs"] == [{"type": "binary", "name": "image", "required": True}]


def test_a_picture_travels_as_file_array_or_base64(model: PyFuncModel, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    with Image.open(pictures[0]) as picture:
        pixels = np.asarray(picture)
    wanted, text = ask(model, content), base64.b64encode(content)
    for other in (text, text.decode(), array_file(pixels), array_file(pixels.astype(float))):
        pd.testing.assert_frame_equal(ask(model, other), wanted)
    assert len(ask(model, array_file(pixels[:, :, 0]))) == 1, "a grey picture"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is no picture.*row 1"),
        (b"GIF89a", "neither a picture nor base64.*row 1"),
        (b"AAAA", "this is no picture"),
        (array_file(np.array([print], dtype=object)), "cannot be decoded: Object arrays"),
    ],
)
def test_a_broken_picture_and_a_pickle_are_refused(content: bytes, message: str, model: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        ask(model, BLACK, content)
    assert caught.value.get_http_status_code() == 400


def test_other_classes(model: PyFuncModel, pictures: list[Path]) -> None:
    vectors = np.random.default_rng(5).random((2, len(ATTRIBUTES))).astype(np.float32)
    by_order = {"gull": vectors[0].tolist(), "zebra": vectors[1].tolist()}
    by_name = {name: dict(zip(ATTRIBUTES[::-1], row[::-1], strict=True)) for name, row in by_order.items()}
    content = pictures[0].read_bytes()
    found = ask(model, content, classes=json.dumps(by_order))
    pd.testing.assert_frame_equal(found, ask(model, content, classes=json.dumps(by_name)))
    order = np.argsort(-scores_of(pictures[:1], vectors)[0] + np.array([GAMMA, 0.0]))
    assert found["classes"][0] == [("gull", "zebra")[u] for u in order]
    assert found["seen"][0] == [(True, False)[u] for u in order], "a gull was trained on"


def test_wrong_params_are_refused(model: PyFuncModel) -> None:
    for params, message in (
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"gamma": float("nan")}, "gamma must be a finite number"),
        ({"classes": "{"}, "no JSON"),
        ({"classes": '{"zebra": {"wings": 1}}'}, "lacks beak, webbed feet, big eyes, crest, long tail"),
    ):
        with pytest.raises(MlflowException, match=message) as caught:
            ask(model, BLACK, **params)
        assert caught.value.get_http_status_code() == 400


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


NO_RUN = "there is no finished run called"


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("bare", UserError, "the run bare has logged no model"),
        ("unknown", UserError, NO_RUN),
        ("x'; drop table runs", UserError, NO_RUN),
        *(
            (name, TrackingError, None)
            for name in ("mgmrn-X@none", "mgmrn-X/7", "mgmrn-Y@champion", "models:/x", "0" * 32)
        ),
    ],
)
def test_names_that_lead_to_no_model_are_refused(name: str, error: type, sentence: str | None, logged: Logged) -> None:
    called = logged.store.create_parent("bare", {"mgmrn.kind": "run"}) if name == "bare" else name
    with pytest.raises(error, match=sentence):
        open_model(called, logged.store.uri)


def test_a_missing_file_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no exported model.*gone\.pt"):
        open_model(str(tmp_path / "gone.pt"), f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
