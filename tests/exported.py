"""A small exported model with drawn weights, and pictures for it."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from mgmrn.checkpoint import TrainedModel, export_model
from mgmrn.config import ExperimentConfig
from mgmrn.data.images import for_evaluation
from mgmrn.data.pictures import read_picture
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head, class_scores, levels_of

NAMES = ("wren", "gull", "owl", "kiwi")
SEEN = np.array([True, True, False, False])
ATTRIBUTES = ("wings", "beak", "webbed feet", "big eyes", "crest", "long tail")
GAMMA = 0.5
_MODEL = {
    **{"kind": "mgmrn", "backbone": {"name": "resnet18", "weights": "none"}, "levels": ("c4", "c5"), "width": 32},
    **{"decoder": {"attention_width": 16}, "refinement": {"topology": "none"}},
}
CONFIG = ExperimentConfig.model_validate({"benchmark": {"name": "X", "images": {"size": 64}}, "model": _MODEL})
CLASS_ATTRIBUTES = np.random.default_rng(0).random((len(NAMES), len(ATTRIBUTES))).astype(np.float32)


def small_model() -> ImageModel:
    """The network, the same at every call."""
    torch.manual_seed(0)
    backbone = build_backbone(CONFIG.model.backbone, levels_of(CONFIG.model))
    model = ImageModel(backbone, build_head(CONFIG.model, backbone.channels, torch.randn(len(ATTRIBUTES), 8)))
    return model.eval()


def write_model(path: Path) -> Path:
    attributes = torch.from_numpy(CLASS_ATTRIBUTES)
    export_model(path, TrainedModel(small_model(), CONFIG, NAMES, attributes, SEEN, GAMMA, ATTRIBUTES))
    return path


def inputs_of(paths: Sequence[Path]) -> Float[torch.Tensor, "B 3 P P"]:
    return torch.stack([for_evaluation(read_picture(path), CONFIG.benchmark.images) for path in paths])


def scores_of(paths: Sequence[Path], classes: Float[np.ndarray, "U S"] = CLASS_ATTRIBUTES) -> Float[np.ndarray, "B U"]:
    """Scores of the network for pictures before γ."""
    with torch.inference_mode():
        attributes = small_model()(inputs_of(paths)).attributes
    return class_scores(attributes, torch.from_numpy(classes), CONFIG.loss.scale).numpy()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    """What a function writes into a file."""
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def array_file(values: np.ndarray) -> bytes:
    return written(lambda file: np.save(file, values))


def write_pictures(folder: Path) -> list[Path]:
    """Two pictures of noise, of different sizes."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(2)]
    for path, (height, width) in zip(paths, ((80, 100), (90, 70)), strict=True):
        Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
    return paths
