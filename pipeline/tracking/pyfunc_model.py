"""Code of the logged model, which MLflow runs beside `mgmrn.zip`: pictures in, class names and calibrated scores out.

MLflow also runs it when the model is logged, in a process that loads no torch.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.models
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

if (code := Path(__file__).parent / "code" / "mgmrn.zip").exists():  # Not when the model is logged.
    sys.path.insert(0, str(code))

from mgmrn.errors import UserError

if TYPE_CHECKING:
    from mgmrn.checkpoint import TrainedModel

ATTRIBUTES = 3


class ImageClassifier(PythonModel):
    """Column `image` → columns `classes`, `scores`, `seen` (best first) and `attributes` (those that decide against the second).

    An image is the bytes of an image file or of a `.npy` array `H W 3`, or their base64. Params:

    - `top_k`: number of classes in an answer.
    - `gamma`: number that is subtracted from the scores of seen classes.
    - `classes`: other classes than the model's, as JSON: `{"zebra": {"stripes": 1.0, …}}` or `{"zebra": [1.0, …]}`.

    A bad picture or param raises `INVALID_PARAMETER_VALUE`, which a server answers as status 400.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from mgmrn.checkpoint import load_model

        self._model = load_model(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answers for every picture; an exception names the row or the param that is wrong."""
        from mgmrn.prediction import answer

        try:
            model, top_k = _asked(self._model, params or {})
            answers = [one for batch in _batches(model, model_input) for one in answer(model, batch, top_k, ATTRIBUTES)]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        columns = {
            "classes": [[one.name for one in found.classes] for found in answers],
            "scores": [[one.score for one in found.classes] for found in answers],
            "seen": [[one.seen for one in found.classes] for found in answers],
            "attributes": [[one.name for one in found.attributes] for found in answers],
        }
        return pd.DataFrame(columns)


def _asked(model: TrainedModel, params: Mapping[str, Any]) -> tuple[TrainedModel, int]:
    """The model with the params' γ and classes, and the number of classes of an answer."""
    from mgmrn.data.class_table import classes_from_json
    from mgmrn.prediction import with_classes

    asked = {name: value for name, value in params.items() if value is not None}
    gamma, top_k, classes = asked.get("gamma", model.gamma), asked.get("top_k", 5), asked.get("classes")
    if not math.isfinite(gamma):
        raise UserError(f"gamma must be a finite number, got {gamma}", "gamma")
    if top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}", "top_k")
    model = replace(model, gamma=float(gamma))
    return (with_classes(model, classes_from_json(classes, "classes")) if classes else model), int(top_k)


def _batches(model: TrainedModel, table: pd.DataFrame) -> Iterator[Any]:
    """Scores batch by batch, so that one batch of decoded pictures is in memory at a time."""
    import torch

    from mgmrn.data.images import prepared
    from mgmrn.prediction import BATCH, score

    values = list(table["image"])
    for start in range(0, len(values), BATCH):
        pixels = [
            prepared(_content(value, f"row {row}"), model.config.benchmark.images, f"row {row}")
            for row, value in enumerate(values[start : start + BATCH], start)
        ]
        yield score(model, torch.stack(pixels))


def _content(value: object, where: str) -> bytes:
    hint = "send the bytes of an image file, or their base64"
    if not isinstance(value, str | bytes | bytearray):
        raise UserError(f"the picture is a {type(value).__name__}", where, hint)
    # A server decodes base64 in `dataframe_…` alone; no image file is plain ASCII.
    if not isinstance(value, str) and not value.isascii():
        return bytes(value)
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise UserError(f"this is neither a picture nor base64: {error}", where, hint) from error


mlflow.models.set_model(ImageClassifier())
