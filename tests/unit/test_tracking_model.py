"""The logged model loads as pyfunc where `pipeline` does not exist, takes pictures and answers as the network does."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mgmrn.checkpoint import export_model
from mgmrn.config import ExperimentConfig
from mgmrn.data.images import decode, for_evaluation
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head, class_scores, levels_of
from pipeline.tracking.model import log_image_model
from pipeline.tracking.store import TrackingStore

NAMES = ("wren", "gull", "owl", "kiwi")
SEEN = np.array([True, True, False, False])


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "benchmark": {"name": "X", "images": {"size": 64}},
            "model": {
                "kind": "mgmrn",
                "backbone": {"name": "resnet18", "weights": "none"},
                "levels": ("c4", "c5"),
                "width": 32,
                "decoder": {"attention_width": 16},
                "refinement": {"topology": "none"},
            },
        }
    )


@pytest.fixture(scope="module")
def network(config: ExperimentConfig) -> ImageModel:
    torch.manual_seed(0)
    backbone = build_backbone(config.model.backbone, levels_of(config.model))
    model = ImageModel(backbone, build_head(config.model, backbone.channels, torch.randn(6, 8)))
    return model.eval()


@pytest.fixture(scope="module")
def class_attributes() -> np.ndarray:
    return np.random.default_rng(0).random((4, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    paths = [folder / f"{index}.png" for index in range(2)]
    for path, (height, width) in zip(paths, ((80, 100), (90, 70)), strict=True):
        Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def logged(
    tmp_path_factory: pytest.TempPathFactory,
    config: ExperimentConfig,
    network: ImageModel,
    class_attributes: np.ndarray,
    pictures: list[Path],
    tables: Path,
) -> tuple[str, str]:
    """The store's address and the model's."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(tables, folder / "mlflow.db")
    export_model(
        folder / "model.pt", network, config, class_names=NAMES, class_attributes=class_attributes, seen=SEEN, gamma=0.5
    )
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id = store.create_parent("run", {})
    uri = log_image_model(store, run_id, folder / "model.pt", 0.5, pictures[0])
    assert log_image_model(store, run_id, folder / "model.pt", 0.5, pictures[0]) == uri
    assert store.get(run_id).tags["mgmrn.model_uri"] == uri
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
    network: ImageModel, config: ExperimentConfig, class_attributes: np.ndarray, pictures: list[Path], gamma: float
) -> np.ndarray:
    images = torch.stack([for_evaluation(decode(path), config.benchmark.images) for path in pictures])
    with torch.inference_mode():
        attributes = network(images).attributes
        scores = class_scores(attributes, torch.from_numpy(class_attributes), config.loss.scale)
    return scores.numpy() - gamma * SEEN


@pytest.mark.parametrize(("which", "gamma", "count"), [("default", 0.5, 4), ("with_params", 0.0, 2)])
def test_it_answers_as_the_network_does(
    answers: dict[str, dict[str, list[list[object]]]],
    network: ImageModel,
    config: ExperimentConfig,
    class_attributes: np.ndarray,
    pictures: list[Path],
    which: str,
    gamma: float,
    count: int,
) -> None:
    wanted = expected(network, config, class_attributes, pictures, gamma)
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


def test_base64_and_broken_pictures(
    logged: tuple[str, str], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    mlflow.set_tracking_uri(logged[0])
    model = mlflow.pyfunc.load_model(logged[1])
    content = pictures[0].read_bytes()
    from_bytes = model.predict(pd.DataFrame({"image": [content]}))
    from_text = model.predict(pd.DataFrame({"image": [base64.b64encode(content).decode()]}))
    pd.testing.assert_frame_equal(from_bytes, from_text)
    grey = io.BytesIO()
    Image.open(pictures[0]).convert("L").save(grey, "JPEG")
    assert len(model.predict(pd.DataFrame({"image": [grey.getvalue()]}))) == 1
    with pytest.raises(ValueError, match=r"cannot be decoded.*row 1"):
        model.predict(pd.DataFrame({"image": [content, content[:60]]}))
    with pytest.raises(ValueError, match=r"cannot be decoded.*row 0"):
        model.predict(pd.DataFrame({"image": ["no base64!"]}))
