"""From a request to answers, picture by picture: a broken one costs its own answer alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mgmrn.checkpoint import LoadedModel
from mgmrn.config import ImageConfig
from mgmrn.data.class_table import read_class_table
from mgmrn.data.pictures import ENDINGS, prepared_file
from mgmrn.errors import UserError
from mgmrn.prediction import BATCH, answer, score, with_classes
from pipeline.models.predict.loading import open_model
from pipeline.models.predict.request import PictureAnswer, PredictRequest

DECODERS = 8
"""Most pictures that are decoded at once: each may hold some hundred megabytes."""


def predict(request: PredictRequest) -> Iterator[PictureAnswer]:
    """Answers in the order of the pictures, batch by batch.

    Raises:
        UserError: when there is no such model, class table or picture; for pictures, before the first answer.
        TrackingError: when the store is away, or has no such run or model.
    """
    pictures = find_pictures(request.places)
    given = read_class_table(request.classes) if request.classes else None
    model = open_model(request.model, request.tracking_uri)
    if given is not None:
        model = with_classes(model, given)
    model.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return _answers(model, pictures, request)


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """The files that are named and the pictures in the folders that are named, those of a folder by name.

    Raises:
        UserError: for a folder without a picture.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        if not inside:
            raise UserError("the folder holds no picture", str(place), f"pictures end in {', '.join(sorted(ENDINGS))}")
        found += inside
    return found


def _answers(model: LoadedModel, pictures: Sequence[Path], request: PredictRequest) -> Iterator[PictureAnswer]:
    remaining = iter(pictures)
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(remaining, BATCH)):
            tried = list(pool.map(lambda path: _prepared(path, model.config.benchmark.images), batch))
            whole = [pixels for pixels in tried if isinstance(pixels, Tensor)]
            found = iter(
                answer(model, score(model, torch.stack(whole)), request.top, request.attributes) if whole else []
            )
            for path, pixels in zip(batch, tried, strict=True):
                if isinstance(pixels, UserError):
                    yield PictureAnswer(path, error=pixels)
                else:
                    yield PictureAnswer(path, next(found))


def _prepared(path: Path, config: ImageConfig) -> Tensor | UserError:
    try:
        return prepared_file(path, config)
    except UserError as error:
        return error
