"""Explanations of a model's answers: one page, a contact sheet per class, and both with the run in MLflow."""

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
from mgmrn.data.pictures import prepared_file
from mgmrn.data.splits import load_final
from mgmrn.makers.synthetic import Parts, read_parts
from pipeline.models.explain_page import ClassOfPictures, Content, contact_sheet, render
from pipeline.models.predict import open_model
from pipeline.models.reasons import Explained, Pointed, Subject, by_part, check_explainable, explain, point
from pipeline.tracking.environment import git_state
from pipeline.tracking.naming import find_run
from pipeline.tracking.registry import registry_uri
from pipeline.tracking.store import TrackingStore

BATCH = 8
"""Pictures at once; each may have some hundred attention maps."""
UNKNOWN = "pictures"
"""Heading of pictures whose class is unknown."""

Split = Literal["test_unseen", "test_seen"]


@dataclass(frozen=True)
class Explanations:
    """Page and sheets that were written."""

    page: Path
    sheets: tuple[Path, ...]
    content: Content
    run_id: str | None
    """Run that has them as artifacts; None for the model of a file or of the registry."""

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `explain --json` prints."""
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
    name: str,
    images: Sequence[Path],
    split: Split,
    per_class: int,
    out: Path,
    tracking_uri: str,
    data_root: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanations:
    """Explains pictures and writes the page and the sheets.

    Args:
        name: of the model, as `open_model` takes it.
        images: pictures to explain; empty: those of the split.
        split: of the model's benchmark.
        per_class: number of pictures of each class of the split, the first ones.
        out: folder of the page and the sheets.
        tracking_uri: address of the store.
        data_root: folder of the benchmarks.
        progress: called after every batch with the numbers of explained pictures and of all.

    Raises:
        UserError: for a model without attention, or a picture or data set that cannot be read.
        TrackingError: when the store cannot be reached, or does not have the run or model.
    """
    model = open_model(name, tracking_uri)
    check_explainable(model)
    if images:
        subjects, parts = [Subject(path, path.name, None) for path in images], None
    else:
        subjects = list(_subjects_of(model, data_root, split, per_class))
        parts = read_parts(data_root, model.config.benchmark.name)
    explained, pointed = _explain_all(model, subjects, parts, progress)
    content = Content(
        model=name,
        benchmark=model.config.benchmark.name,
        gamma=model.gamma,
        classes=tuple(_by_class(explained)),
        pointing=by_part(pointed) if pointed else None,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
    )
    page = out / "index.html"
    with replacing(page) as file:
        file.write(render(content).encode())
    sheets = tuple(_write_sheet(out / "sheets", of_class) for of_class in content.classes)
    return Explanations(page, sheets, content, _log(name, tracking_uri, page, sheets))


def _subjects_of(model: LoadedModel, data_root: Path, split: Split, per_class: int) -> Iterator[Subject]:
    """The first pictures of each class of a split."""
    data = load_final(data_root, model.config.benchmark)
    images = data.unseen if split == "test_unseen" else data.seen
    for label in np.unique(images.labels):
        for row in np.flatnonzero(images.labels == label)[:per_class].tolist():
            yield Subject(images.path(row), images.files[row], data.classes.names[label])


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
        views, answers = explain(model, batch, torch.stack([prepared_file(one.path, config) for one in batch]))
        explained += answers
        if parts is not None:
            pointed += point(views, batch, parts, model.attribute_names, config)
        progress(len(explained), len(subjects))
    return explained, pointed


def _by_class(explained: Sequence[Explained]) -> Iterator[ClassOfPictures]:
    for name in dict.fromkeys(one.subject.truth for one in explained):
        yield ClassOfPictures(name or UNKNOWN, tuple(one for one in explained if one.subject.truth == name))


def _write_sheet(folder: Path, of_class: ClassOfPictures) -> Path:
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', of_class.name)}.png"
    with replacing(path) as file:
        contact_sheet(of_class.name, of_class.pictures).save(file, format="PNG", optimize=True)
    return path


def _log(name: str, tracking_uri: str, page: Path, sheets: Sequence[Path]) -> str | None:
    """Logs page and sheets with the run, if the model was named by one."""
    if Path(name).exists() or registry_uri(name):
        return None
    store = TrackingStore.connect(tracking_uri)
    run_id = find_run(store, name).run_id
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
