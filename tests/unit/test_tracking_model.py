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

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from PIL import Image

from mgmrn.data.images import decode, for_evaluation
from mgmrn.model.network import ImageModel, class_scores
from pipeline.errors import TrackingError
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.store import TrackingStore
from tests.exported import ATTRIBUTES, CLASS_ATTRIBUTES, CONFIG, NAMES, SEEN, small_model, write_model, write_pictures


@pytest.fixture(scope="module")
def network() -> ImageModel:
    return small_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def logged(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: list[Path],
    tables: Path,
) -> tuple[str, str]:
    """The store's address and the model's."""
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
        store.log_model(run_id, folder / "model.pt", 0.5, pictures[0])
    store.log_model(run_id, folder / "model.pt", 0.5, pictures[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    store.log_model(run_id, folder / "model.pt", 0.5, pictures[0])
    assert store.get(run_id).tags[MODEL_TAG] == uri
    model = store.client.get_logged_model(uri.removeprefix("models:/"))
    assert (str(model.status), model.source_run_id, model.experiment_id) == ("READY", run_id, store.experiment_id)
    return store.uri, uri


@pytest.fixture(scope="module")
def answers(
    logged: tuple[str, str], pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """What the model says in a process that knows nothing of this repository."""
    code = """
import json, sys
import mlflow, pandas as pd
store, uri, *paths = sys.argv[1:]
mlflow.set_tracking_uri(store)
model = mlflow.pyfunc.load_model(uri)
images = pd.DataFrame({"image": [open(path, "rb").read() for path in paths]})
default = model.predict(images)
params = {"gamma": 0.0, "top_k": 2}
print(json.dumps({
    "default": default.to_dict("list"),
    "with_params": model.predict(images, params=params).to_dict("list"),
    "inputs": model.metadata.get_input_schema().to_dict(),
    "modules": [name for name in ("pipeline", "ray") if name in sys.modules],
    "mgmrn": sys.modules["mgmrn"].__file__,
}))
"""
    command = [sys.executable, "-c", code, *logged, *map(str, pictures)]
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def expected(
    network: ImageModel, class_attributes: np.ndarray, pictures: list[Path], gamma: float | np.ndarray
) -> np.ndarray:
    images = torch.stack([for_evaluation(decode(path), CONFIG.benchmark.images) for path in pictures])
    with torch.inference_mode():
        attributes = network(images).attributes
        scores = class_scores(attributes, torch.from_numpy(class_attributes), CONFIG.loss.scale)
    return scores.numpy() - (gamma * SEEN if isinstance(gamma, float) else gamma)


@pytest.mark.parametrize(("which", "gamma", "count"), [("default", 0.5, 4), ("with_params", 0.0, 2)])
def test_it_answers_as_the_network_does(
    answers: dict[str, dict[str, list[list[object]]]],
    network: ImageModel,
    pictures: list[Path],
    which: str,
    gamma: float,
    count: int,
) -> None:
    wanted = expected(network, CLASS_ATTRIBUTES, pictures, gamma)
    order = np.argsort(-wanted, axis=1)[:, :count]
    answer = answers[which]
    assert answer["classes"] == [[NAMES[i] for i in row] for row in order]
    np.testing.assert_allclose(answer["scores"], np.take_along_axis(wanted, order, axis=1), atol=1e-4)


def test_it_needs_nothing_of_the_pipeline(answers: dict[str, object]) -> None:
    assert answers["modules"] == []
    repository = Path(__file__).resolve().parents[2]
    assert not Path(str(answers["mgmrn"])).is_relative_to(repository)
    assert not (repository / "mlruns").exists()
    assert answers["inputs"] == [{"type": "binary", "name": "image", "required": True}]


@pytest.fixture(scope="module")
def model(logged: tuple[str, str]) -> PyFuncModel:
    import mlflow

    mlflow.set_tracking_uri(logged[0])
    return mlflow.pyfunc.load_model(logged[1])


def images(*values: object) -> pd.DataFrame:
    return pd.DataFrame({"image": list(values)})


def array_file(values: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def blank(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_travels_in_many_ways(model: PyFuncModel, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    with Image.open(pictures[0]) as picture:
        pixels = np.asarray(picture)
        grey = io.BytesIO()
        picture.convert("L").save(grey, "JPEG")
    wanted = model.predict(images(content))
    text = base64.b64encode(content)
    for other in (text, text.decode(), array_file(pixels), array_file(pixels.astype(float))):
        pd.testing.assert_frame_equal(model.predict(images(other)), wanted)
    assert len(model.predict(images(grey.getvalue(), array_file(pixels[:, :, 0])))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is no picture.*row 1"),
        (b"GIF89a", "neither a picture nor base64.*row 1"),
        ("no base64!", "neither a picture nor base64.*row 1"),
        (b"AAAA", "this is no picture"),
        (blank(11000, 11000), "has 11000 × 11000 pixels, more than 50 million"),
        (blank(2, 500), "has 2 × 500 pixels"),
        (array_file(np.zeros((8, 8, 4))), r"the array is \(8, 8, 4\) of float64, no picture"),
        (array_file(np.zeros((0, 8, 3))), "no picture"),
        (array_file(np.full((8, 8, 3), 0.5)), "multiply them by 255"),
        (array_file(np.full((8, 8, 3), np.nan)), "outside 0 to 255"),
        (array_file(np.zeros((8, 8, 3)))[:40], "the array cannot be read"),
        (array_file("text"), "no picture"),
    ],
)
def test_a_broken_picture_is_refused(
    content: bytes | str, message: str, model: PyFuncModel, pictures: list[Path]
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(images(pictures[0].read_bytes(), content))
    assert caught.value.get_http_status_code() == 400


def test_a_picture_that_is_cut_short(model: PyFuncModel, pictures: list[Path]) -> None:
    with pytest.raises(MlflowException, match=r"cannot be decoded.*row 0"):
        model.predict(images(pictures[0].read_bytes()[:600]))


def test_pickles_are_not_run(model: PyFuncModel) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(MlflowException, match="the array cannot be read"):
        model.predict(images(stream.getvalue()))


def test_other_classes(model: PyFuncModel, pictures: list[Path], network: ImageModel) -> None:
    vectors = np.random.default_rng(5).random((2, len(ATTRIBUTES))).astype(np.float32)
    by_order = json.dumps({"gull": vectors[0].tolist(), "zebra": vectors[1].tolist()})
    named = [dict(zip(ATTRIBUTES[::-1], row[::-1].tolist(), strict=True)) for row in vectors]
    found = model.predict(images(pictures[0].read_bytes()), params={"classes": by_order})
    same = model.predict(
        images(pictures[0].read_bytes()), params={"classes": json.dumps({"gull": named[0], "zebra": named[1]})}
    )
    pd.testing.assert_frame_equal(found, same)
    scores = expected(network, vectors, pictures[:1], np.array([0.5, 0.0]))[0]
    order = np.argsort(-scores)
    assert found["classes"][0] == [("gull", "zebra")[u] for u in order]
    np.testing.assert_allclose(found["scores"][0], scores[order], atol=1e-4)
    assert found["seen"][0] == [(True, False)[u] for u in order], "a gull was trained on"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"gamma": float("nan")}, "gamma must be a finite number"),
        ({"classes": "{"}, "no JSON"),
        ({"classes": '{"zebra": [1, 2]}'}, "the class zebra has 2 attributes instead of 6"),
        ({"classes": '{"zebra": {"wings": 1}}'}, "lacks beak, webbed feet, big eyes, crest, long tail"),
        ({"classes": '{"zebra": "striped"}'}, "do not all name the same attributes"),
    ],
)
def test_wrong_params_are_refused(
    params: dict[str, object], message: str, model: PyFuncModel, pictures: list[Path]
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(images(pictures[0].read_bytes()), params=params)
    assert caught.value.get_http_status_code() == 400
