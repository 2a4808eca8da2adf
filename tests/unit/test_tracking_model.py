"""The logged model loads as pyfunc where `pipeline` does not exist, takes pictures and answers as the network does."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from PIL import Image

from pipeline.errors import TrackingError
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from tests.exported import ATTRIBUTES, GAMMA, NAMES, SEEN, array_file, scores_of, write_model, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path], tables: Path) -> tuple[str, str]:
    """Addresses of the store and of the model, which was logged at the second attempt."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(tables, folder / "mlflow.db")
    write_model(folder / "model.pt")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id = store.create_parent("run", {})
    log = Model.log

    def log_and_fail(**parts: Any) -> None:
        log(**parts)
        raise MlflowException("the server went away")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrackingError, match="went away"):
        patch.setattr(Model, "log", log_and_fail)
        store.log_model(run_id, folder / "model.pt", GAMMA, pictures[0])
    store.log_model(run_id, folder / "model.pt", GAMMA, pictures[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    store.log_model(run_id, folder / "model.pt", GAMMA, pictures[0])
    assert store.get(run_id).tags[MODEL_TAG] == uri
    model = store.client.get_logged_model(uri.removeprefix("models:/"))
    assert (str(model.status), model.source_run_id, model.experiment_id) == ("READY", run_id, store.experiment_id)
    return store.uri, uri


@pytest.fixture(scope="module")
def model(logged: tuple[str, str]) -> PyFuncModel:
    mlflow.set_tracking_uri(logged[0])
    return mlflow.pyfunc.load_model(logged[1])


def ask(model: PyFuncModel, *contents: object, **params: object) -> pd.DataFrame:
    return model.predict(pd.DataFrame({"image": list(contents)}), params=params or None)


def test_it_answers_as_the_network_does_in_a_process_that_knows_nothing_of_this_repository(
    logged: tuple[str, str], pictures: list[Path], tmp_path: Path
) -> None:
    code = """
import json, sys
import mlflow, pandas as pd
store, uri, *paths = sys.argv[1:]
mlflow.set_tracking_uri(store)
model = mlflow.pyfunc.load_model(uri)
images = pd.DataFrame({"image": [open(path, "rb").read() for path in paths]})
print(json.dumps({
    "answers": [model.predict(images, params=params).to_dict("list") for params in (None, {"gamma": 0.0, "top_k": 2})],
    "inputs": model.metadata.get_input_schema().to_dict(),
    "modules": [name for name in ("pipeline", "ray") if name in sys.modules],
    "mgmrn": sys.modules["mgmrn"].__file__,
}))
"""
    command = [sys.executable, "-c", code, *logged, *map(str, pictures)]
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


def noise(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


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
        (noise(2, 500), "has 2 × 500 pixels"),
        (noise(64, 64)[:600], "cannot be decoded"),
        (array_file(np.zeros((8, 8, 4))), r"the array is \(8, 8, 4\) of float64, no picture"),
        (array_file(np.full((8, 8, 3), 0.5)), "multiply them by 255"),
        (array_file(np.full((8, 8, 3), np.nan)), "outside 0 to 255"),
        (array_file(np.array([print], dtype=object)), "the array cannot be read"),
    ],
)
def test_a_broken_picture_and_a_pickle_are_refused(content: bytes, message: str, model: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        ask(model, noise(64, 64), content)
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
            ask(model, noise(64, 64), **params)
        assert caught.value.get_http_status_code() == 400
