"""Path and identity of pretrained weights, without torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mgmrn.errors import UserError


def is_weights_file(weights: str) -> bool:
    """Whether `weights` is a path rather than a name of torchvision's enum, timm's tag or `none`."""
    return weights.endswith((".pth", ".pt", ".safetensors")) or "/" in weights


def find_weights(weights: str, data_root: Path) -> str:
    """Absolute path of a weights file below the data root or the working folder; names are returned unchanged.

    Raises UserError when the file is in neither place.
    """
    if not is_weights_file(weights):
        return weights
    for folder in (data_root, Path.cwd()):
        if os.path.isfile(path := folder / os.path.expanduser(weights)):
            return str(path.resolve())
    hint = f"put it below {data_root}, give an absolute path, or name weights of torchvision or timm"
    raise UserError(f"the weights file {weights} does not exist", "model.backbone.weights", hint)


def weights_digest(weights: str) -> str:
    """sha256 of a file's bytes as hex; a name is its own digest."""
    if not is_weights_file(weights):
        return weights
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
