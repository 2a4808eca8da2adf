"""Checkpoints and exported models on disk: atomic, verified on load, never a pickle that can run code.

A *training checkpoint* holds the state of an exact resume, for one config. An *exported model* holds what a prediction
needs: weights with backbone, class table, image size, γ. U classes, S attributes, L word-vector length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mgmrn.atomic_file import replacing
from mgmrn.config import ExperimentConfig
from mgmrn.data.seal import check_open
from mgmrn.data.xlsa17 import numbered_attributes
from mgmrn.errors import UserError
from mgmrn.model.network import ImageModel, build_model
from mgmrn.tensor_files import load_strictly, read_plain, refuse_damaged

CHECKPOINT_FILE = "state.pt"


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Writes a state; the errors are those of `replacing`."""
    with replacing(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # On a full disk torch's writer complains about positions in the file.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state of tensors and plain values; the errors are those of `read_plain` and `refuse_damaged`.

    Raises SealedError in a sealed process for an exported model, which names the unseen classes.
    """
    kind, remedy = "checkpoint", "take another one"
    state = read_plain(path, kind, remedy)
    refuse_damaged(path, kind, remedy)
    if "class_attributes" in state:
        check_open(f"the class table of {path.name}")
    return state


def save_checkpoint(folder: Path, trainer_state: Mapping[str, Any], run_identity: str) -> None:
    """Writes a training checkpoint of the run `run_identity`."""
    save_atomically({"run_identity": run_identity, "trainer": dict(trainer_state)}, folder / CHECKPOINT_FILE)


def load_checkpoint(folder: Path, run_identity: str) -> dict[str, Any]:
    """The trainer's state of a checkpoint. Raises UserError when it is unreadable, or was made by another config."""
    path = folder / CHECKPOINT_FILE
    state = load_state(path)
    found = state.get("run_identity")
    if found != run_identity:
        message = f"the checkpoint belongs to another run ({found}, wanted {run_identity})"
        raise UserError(message, str(path), "use another storage folder, or delete this one")
    return cast(dict[str, Any], state["trainer"])


@dataclass(frozen=True)
class TrainedModel:
    """A network with its classes and attributes: the content of an exported model."""

    network: ImageModel
    config: ExperimentConfig
    class_names: tuple[str, ...]
    class_attributes: Float[Tensor, "U S"]
    seen: Bool[np.ndarray, " U"]
    gamma: float
    attribute_names: tuple[str, ...]


def export_model(path: Path, model: TrainedModel) -> None:
    """Writes a self-contained model file."""
    state = {
        "config": model.config.model_dump_json(),
        "network": {name: value.cpu() for name, value in model.network.state_dict().items()},
        "class_names": list(model.class_names),
        "class_attributes": model.class_attributes,
        "seen": torch.from_numpy(model.seen),
        "gamma": model.gamma,
        "attribute_names": list(model.attribute_names),
    }
    save_atomically(state, path)


def load_model(path: Path) -> TrainedModel:
    """Reads an exported model, ready for evaluation on the CPU.

    Raises UserError when the file is unreadable or damaged, or its tensors do not fit the network of its own config.
    """
    state = load_state(path)
    try:
        config = ExperimentConfig.model_validate_json(state["config"])
        weights = state["network"]
        # Without the pretrained weights, whose file may be gone.
        backbone = config.model.backbone.model_copy(update={"weights": "none"})
        network = build_model(config.model.model_copy(update={"backbone": backbone}), weights["head.word_vectors"])
        hint = "load it with the config that it was trained with"
        load_strictly(network, weights, "the checkpoint is of another architecture", str(path), hint)
        network.eval()
        model = TrainedModel(
            network=network,
            config=config,
            class_names=tuple(state["class_names"]),
            class_attributes=state["class_attributes"],
            seen=state["seen"].numpy(),
            gamma=float(state["gamma"]),
            # Files of earlier versions have none.
            attribute_names=tuple(
                state.get("attribute_names") or numbered_attributes(state["class_attributes"].shape[1])
            ),
        )
        shapes = model.class_attributes.shape, model.seen.shape, weights["head.word_vectors"].shape[:1]
        classes, attributes = len(model.class_names), len(model.attribute_names)
        if shapes != ((classes, attributes), (classes,), (attributes,)):
            raise ValueError(f"{classes} classes and {attributes} attributes do not fit {shapes}")
    except UserError:
        raise
    # A file of plain values may hold anything under these names.
    except Exception as error:
        message = f"the file is not an exported model: {str(error).splitlines()[0]}"
        if isinstance(error, KeyError):
            message += " is missing"
        raise UserError(message, str(path), "take another one") from error
    return model
