"""The logged model's own code: pictures in, class names and calibrated scores out.

MLflow runs this file when the model is loaded, beside a copy of `mgmrn`; nothing else of this project is needed there.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

from mgmrn.checkpoint import load_model
from mgmrn.data.images import decode, for_evaluation
from mgmrn.errors import UserError
from mgmrn.model.network import class_scores

BATCH = 32


class ImageClassifier(PythonModel):
    """Column `image` (bytes of an image file, or their base64) → columns `classes` and `scores`, best first.

    Params: `gamma` is subtracted from the scores of seen classes, `top_k` classes are answered per image.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the exported model."""
        self._model = load_model(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores each picture against all classes.

        Raises:
            UserError: naming the row that holds no picture.
        """
        model, params = self._model, params or {}
        images = [_picture(value, row) for row, value in enumerate(model_input["image"])]
        scores = [self._scores(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        calibrated = np.concatenate(scores) - float(params.get("gamma", model.gamma)) * model.seen
        best = np.argsort(-calibrated, axis=1, kind="stable")[:, : int(params.get("top_k", 5))]
        names = np.asarray(model.class_names)
        columns = {
            "classes": [names[row].tolist() for row in best],
            "scores": np.take_along_axis(calibrated, best, axis=1).tolist(),
        }
        return pd.DataFrame(columns)

    @torch.inference_mode()
    def _scores(self, pictures: list[torch.Tensor]) -> np.ndarray:
        model = self._model
        images = torch.stack([for_evaluation(picture, model.config.benchmark.images) for picture in pictures])
        output = model.network(images)
        scores: np.ndarray = class_scores(output.attributes, model.class_attributes, model.config.loss.scale).numpy()
        return scores


def _picture(value: bytes | str, row: int) -> torch.Tensor:
    """A picture as `3 H W`, RGB, upright."""
    where, remedy = f"row {row}", "send the bytes of an image file, or their base64"
    try:
        content = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"the picture cannot be decoded: {error}", where, remedy) from error
    return decode(io.BytesIO(content), where, remedy)


mlflow.models.set_model(ImageClassifier())
