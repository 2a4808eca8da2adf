"""Prediction of a trained model for pictures; a picture that cannot be read costs its own answer alone."""

from __future__ import annotations

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

from mgmrn.checkpoint import MODEL_FILE, LoadedModel, load_model
from mgmrn.config import ImageConfig
from mgmrn.data.class_table import read_class_table
from mgmrn.data.pictures import ENDINGS, prepared_file
from mgmrn.errors import UserError
from mgmrn.prediction import BATCH, Answer, answer, score, with_classes
from pipeline.console import Console
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.naming import find_run
from pipeline.tracking.registry import fetch_exported, registry_uri
from pipeline.tracking.store import TrackingStore

DECODERS = 8
"""Largest number of pictures decoded at once; each may hold some hundred megabytes."""


@dataclass(frozen=True)
class Prediction:
    """Answer for one picture, or the reason why there is none."""

    picture: Path
    answer: Answer | None = None
    error: UserError | None = None

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `--json` and `--json-lines` print."""
        if self.answer is None:
            return {"picture": str(self.picture), "error": self.error.message if self.error else ""}
        return {"picture": str(self.picture), **asdict(self.answer)}


def open_model(name: str, tracking_uri: str) -> LoadedModel:
    """Finds and loads a model, ready for evaluation on the CPU.

    Args:
        name: path of an exported model file or of a folder that holds one (checked first); `mgmrn-CUB@champion`, `mgmrn-CUB/3` or
            `models:/…` in the registry; id or name of a run.
        tracking_uri: address of the store of runs and registered models.

    Raises:
        UserError: when no model has this name, the run has no model, or the file is not an exported model.
        TrackingError: when the store cannot be reached, or does not have the run or model.
    """
    path = Path(name)
    if path.is_dir() and (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    if path.is_file():
        return load_model(path)
    if path.suffix == ".pt" or path.is_dir():
        hint = f"name a {MODEL_FILE} of a run, a run, or a registered model"
        raise UserError("there is no exported model", name, hint)
    store = TrackingStore.connect(tracking_uri)
    uri = registry_uri(name)
    if uri is None:
        run = find_run(store, name)
        uri = run.tags.get(MODEL_TAG)
        if not uri:
            hint = "name a finished run of the final split; `tune` runs and ESZSL log none"
            raise UserError(f"the run {run.name} has logged no model", "RUN", hint)
    with tempfile.TemporaryDirectory() as folder:
        return load_model(fetch_exported(store, uri, Path(folder)))


def predict(
    name: str, paths: Sequence[Path], classes: Path | None, top: int, attributes: int, tracking_uri: str
) -> Iterator[Prediction]:
    """Predictions in the order of the pictures, batch by batch.

    Args:
        name: of the model, as `open_model` takes it.
        paths: pictures, and folders of pictures.
        classes: table of the classes to choose from; None: the model's own.
        top: number of classes per picture.
        attributes: number of attributes per picture.
        tracking_uri: address of the store.

    Raises:
        UserError: when the model, the class table or a folder's pictures do not exist; before the first prediction.
        TrackingError: when the store cannot be reached, or does not have the run or model.
    """
    pictures = find_pictures(paths)
    given = read_class_table(classes) if classes else None
    model = open_model(name, tracking_uri)
    if given is not None:
        model = with_classes(model, given)
    model.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return _predictions(model, pictures, top, attributes)


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The named files, and the pictures in the named folders, those of a folder by name.

    Raises:
        UserError: for a folder without a picture.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in ENDINGS and one.is_file())
        if not inside:
            raise UserError("the folder holds no picture", str(path), f"pictures end in {', '.join(sorted(ENDINGS))}")
        found += inside
    return found


def show_predictions(predictions: Sequence[Prediction], console: Console) -> None:
    """Prints a line per class with the attributes that decided beside the best one, then the pictures without an answer."""
    rows = []
    for one in predictions:
        for rank, found in enumerate(one.answer.classes if one.answer else ()):
            group = "seen" if found.seen else "unseen"
            decided = (
                ", ".join(f"{name.name} {name.margin:+.2f}" for name in one.answer.attributes) if one.answer else ""
            )
            first = (str(one.picture), decided) if rank == 0 else ("", "")
            rows.append([first[0], found.name, group, f"{found.score:.2f}", first[1]])
    if rows:
        console.table(["picture", "class", "", "score", "decided by"], rows)
    for one in predictions:
        if one.error is not None:
            console.line(f"error: {one.error}")


def _predictions(model: LoadedModel, pictures: Sequence[Path], top: int, attributes: int) -> Iterator[Prediction]:
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
        return prepared_file(path, config)
    except UserError as error:
        return error
