"""`explain`: from a model and pictures to one page, a contact sheet per class, and both with the run in MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mgmrn.atomic_file import replacing
from mgmrn.checkpoint import LoadedModel
from mgmrn.data.parts import Parts, read_parts
from mgmrn.data.pictures import prepared_file
from mgmrn.data.splits import Images, load_final
from mgmrn.data.xlsa17 import STANDIN_MARKER
from pipeline.models.explain.explained import Explained, Subject, check_explainable, explain
from pipeline.models.explain.page import ClassOfPictures, Content, render
from pipeline.models.explain.pointing import Pointed, by_part, point
from pipeline.models.explain.sheet import contact_sheet
from pipeline.models.predict.loading import open_model
from pipeline.tracking.environment import git_state
from pipeline.tracking.naming import find_run
from pipeline.tracking.registry import registry_uri
from pipeline.tracking.store import TrackingStore

BATCH = 8
"""Pictures at once; each may have some hundred attention maps."""
OF_ONES_OWN = "pictures"
"""Heading of pictures whose class nobody told."""

Split = Literal["test_unseen", "test_seen"]


@dataclass(frozen=True)
class ExplainRequest:
    """What is asked."""

    model: str
    images: tuple[Path, ...]
    """None: pictures of the split are taken."""
    split: Split
    per_class: int
    """The first so many of each class of the split."""
    out: Path
    """Folder of the page and the sheets."""
    tracking_uri: str
    data_root: Path


@dataclass(frozen=True)
class Explanations:
    """What was made."""

    page: Path
    sheets: tuple[Path, ...]
    content: Content
    run_id: str | None
    """That has them as artifacts; None where a file or a registered model was named."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        overall = self.content.overall
        return {
            "page": str(self.page),
            "sheets": [str(sheet) for sheet in self.sheets],
            "run_id": self.run_id,
            "pictures": [_picture_to_json(one) for one in self.content.pictures],
            "pointing_accuracy": overall.accuracy if overall else None,
            "pointing_chance": overall.chance if overall else None,
            "pointing": {
                level: {
                    part: {"accuracy": one.accuracy, "chance": one.chance, "maps": one.maps}
                    for part, one in parts.items()
                }
                for level, parts in (self.content.pointing or {}).items()
            },
        }


def run_explain(
    request: ExplainRequest, progress: Callable[[int, int], None] = lambda done, total: None
) -> Explanations:
    """Explains pictures and writes what is to be looked at.

    Args:
        request: names the model, the pictures and the folder.
        progress: told after every batch.

    Raises:
        UserError: for a model that attends to nothing, a picture or a data set that cannot be read.
        TrackingError: when the store is away, or has no such run or model.
    """
    model = open_model(request.model, request.tracking_uri)
    check_explainable(model)
    subjects = _subjects(request, model)
    parts = None if request.images else read_parts(request.data_root, model.config.benchmark.name)
    explained, pointed = _explain_all(model, subjects, parts, progress)
    content = Content(
        model=request.model,
        benchmark=model.config.benchmark.name,
        standin=not request.images and (request.data_root / STANDIN_MARKER).exists(),
        gamma=model.gamma,
        classes=tuple(_by_class(explained)),
        pointing=by_part(pointed) if pointed else None,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
    )
    page = request.out / "index.html"
    with replacing(page) as file:
        file.write(render(content).encode())
    sheets = tuple(_write_sheet(request.out / "sheets", of_class) for of_class in content.classes)
    return Explanations(page, sheets, content, _log(request, page, sheets))


def _subjects(request: ExplainRequest, model: LoadedModel) -> list[Subject]:
    if request.images:
        return [Subject(path, path.name, None) for path in request.images]
    data = load_final(request.data_root, model.config.benchmark)
    images = data.unseen if request.split == "test_unseen" else data.seen
    return list(_first_of_each(images, data.classes.names, request.per_class))


def _first_of_each(images: Images, names: Sequence[str], per_class: int) -> Iterator[Subject]:
    for label in np.unique(images.labels):
        for row in np.flatnonzero(images.labels == label)[:per_class].tolist():
            yield Subject(images.path(row), images.files[row], names[label])


def _explain_all(
    model: LoadedModel,
    subjects: Sequence[Subject],
    parts: dict[str, Parts] | None,
    progress: Callable[[int, int], None],
) -> tuple[list[Explained], list[Pointed]]:
    explained: list[Explained] = []
    pointed: list[Pointed] = []
    config = model.config.benchmark.images
    for start in range(0, len(subjects), BATCH):
        batch = subjects[start : start + BATCH]
        looked = explain(model, batch, torch.stack([prepared_file(one.path, config) for one in batch]))
        explained += looked.explained
        if parts is not None:
            pointed += point(looked.views, batch, parts, model.attribute_names, config)
        progress(len(explained), len(subjects))
    return explained, pointed


def _by_class(explained: Sequence[Explained]) -> Iterator[ClassOfPictures]:
    for name in dict.fromkeys(one.subject.truth for one in explained):
        yield ClassOfPictures(name or OF_ONES_OWN, tuple(one for one in explained if one.subject.truth == name))


def _write_sheet(folder: Path, of_class: ClassOfPictures) -> Path:
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', of_class.name)}.png"
    with replacing(path) as file:
        contact_sheet(of_class.name, of_class.pictures).save(file, format="PNG", optimize=True)
    return path


def _log(request: ExplainRequest, page: Path, sheets: Sequence[Path]) -> str | None:
    """Leaves everything with the run, where a run was named."""
    if Path(request.model).exists() or registry_uri(request.model):
        return None
    store = TrackingStore.connect(request.tracking_uri)
    run_id = find_run(store, request.model).run_id
    store.log_file(run_id, page, "explain")
    for sheet in sheets:
        store.log_file(run_id, sheet, "explain/sheets")
    return run_id


def _picture_to_json(one: Explained) -> dict[str, Any]:
    return {
        "image": str(one.subject.path),
        "truth": one.subject.truth,
        "class": one.best.name,
        "runner_up": one.runner_up.name,
        "margin": one.margin,
        "handicap": one.handicap,
        "others": one.others,
        "attributes": {reason.attribute: dict(reason.by_level) for reason in one.reasons},
    }
