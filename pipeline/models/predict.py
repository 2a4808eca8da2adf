"""Predictions of a trained model for pictures; a picture that cannot be read costs only its own answer."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgmrn.checkpoint import TrainedModel, load_model
from mgmrn.config import ImageConfig
from mgmrn.data.class_table import read_class_table
from mgmrn.data.images import prepared
from mgmrn.data.matrices import alike_rows
from mgmrn.data.pictures import ENDINGS, files_below
from mgmrn.errors import UserError, some
from mgmrn.prediction import BATCH, Answer, answer, score, with_classes
from pipeline.console import Console, say
from pipeline.tracking.registry import fetch_exported, registry_uri
from pipeline.tracking.store import MODEL_TAG, NO_MODEL_HINT, TrackingStore
from pipeline.train.spec import MODEL_FILE

DECODERS = 8
"""Largest number of pictures decoded at once; each may take some hundred megabytes."""


@dataclass(frozen=True)
class Prediction:
    """Answer for one picture, or the reason why there is none."""

    picture: Path
    answer: Answer | None = None
    error: UserError | None = None

    def to_json(self) -> dict[str, Any]:
        if self.answer is None:
            return {"picture": str(self.picture), "error": self.error.message if self.error else ""}
        return {"picture": str(self.picture), **asdict(self.answer)}


def open_model(name: str, tracking_uri: str) -> TrainedModel:
    """Find a model by the path of an exported file or its folder, a name in the registry, or a run, and load it on the CPU.

    Raises `UserError` when no model has this name, the run has no model, or the file is not an exported model, and `TrackingError` when the
    store is unreachable, or does not have the run or model.
    """
    path = Path(name)
    if path.is_dir() and (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    if path.is_file():
        return load_model(path)
    if path.suffix == ".pt" or path.is_dir():
        hint = f"name a {MODEL_FILE} of a run, a run, or a registered model"
        raise UserError("there is no exported model", name, hint)
    store = TrackingStore.open(tracking_uri)
    uri = registry_uri(name)
    if uri is None:
        run = store.find_run(name)
        uri = run.tags.get(MODEL_TAG)
        if not uri:
            raise UserError(f"the run {run.name} has logged no model", "RUN", NO_MODEL_HINT)
    with tempfile.TemporaryDirectory() as folder:
        return load_model(fetch_exported(store, uri, Path(folder)))


def predict(
    name: str, paths: Sequence[Path], classes: Path | None, top: int, attributes: int, tracking_uri: str
) -> Iterator[Prediction]:
    """Predictions in the order of the pictures, batch by batch, of the model that `open_model` finds by its name.

    `classes` is a table of the classes to choose from, in place of the model's own; `top` and `attributes` are numbers per picture.
    Raises `UserError`, before the first prediction, when the model, the class table or a folder's pictures do not exist.
    """
    pictures = find_pictures(paths)
    given = read_class_table(classes) if classes else None
    model = open_model(name, tracking_uri)
    if given is not None:
        model = with_classes(model, given)
        if len(alike := alike_rows(model.class_attributes.numpy())):
            message = f"{len(alike)} classes of {classes} cannot be told apart, since they have equal attributes"
            say(f"warning: {message}: {some([model.class_names[row] for row in alike])}")
    model.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return _predictions(model, pictures, top, attributes)


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The named files, and the pictures in the named folders sorted by name; a folder without any is an error."""
    found: list[Path] = []
    for path in paths:
        inside = [one for one in files_below(path) if one.suffix.lower() in ENDINGS] if path.is_dir() else [path]
        if not inside:
            raise UserError("the folder holds no picture", str(path), f"pictures end in {', '.join(sorted(ENDINGS))}")
        found += inside
    return found


def show_predictions(predictions: Sequence[Prediction], console: Console) -> None:
    """Print a line per class, with the deciding attributes beside the best class, then the pictures without an answer."""
    rows = []
    for picture, found in ((one.picture, one.answer) for one in predictions if one.answer):
        decided = ", ".join(f"{attribute.name} {attribute.margin:+.2f}" for attribute in found.attributes)
        lines = [["", one.name, "seen" if one.seen else "unseen", f"{one.score:.2f}", ""] for one in found.classes]
        lines[0][0], lines[0][-1] = str(picture), decided
        rows += lines
    if rows:
        console.table(["picture", "class", "", "score", "decided by"], rows)
    for one in predictions:
        if one.error is not None:
            console.line(f"error: {one.error}")


def _predictions(model: TrainedModel, pictures: Sequence[Path], top: int, attributes: int) -> Iterator[Prediction]:
    remaining = iter(pictures)
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(remaining, BATCH)):
            prepared = list(pool.map(lambda path: _prepared(path, model.config.benchmark.images), batch))
            pixels = [one for one in prepared if isinstance(one, Tensor)]
            answers = iter(answer(model, score(model, torch.stack(pixels)), top, attributes) if pixels else [])
            for path, one in zip(batch, prepared, strict=True):
                yield Prediction(path, error=one) if isinstance(one, UserError) else Prediction(path, next(answers))


def _prepared(path: Path, config: ImageConfig) -> Tensor | UserError:
    try:
        return prepared(path, config)
    except UserError as error:
        return error
