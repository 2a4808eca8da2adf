"""Explanations of a model's answers: one page, a contact sheet per class, and both with the run in MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mgmrn.atomic_file import replacing
from mgmrn.checkpoint import LoadedModel
from mgmrn.data.pictures import prepared_file
from mgmrn.data.splits import load_final
from mgmrn.makers.synthetic import read_parts
from pipeline.models.explain_page import Explanations, contact_sheet, render
from pipeline.models.predict import open_model
from pipeline.models.reasons import Explained, Pointed, Subject, by_part, check_explainable, explain, point
from pipeline.tracking.environment import git_state
from pipeline.tracking.registry import registry_uri
from pipeline.tracking.store import TrackingStore

BATCH = 8
"""Pictures per batch; each may have some hundred attention maps."""
UNKNOWN = "pictures"
"""Heading of pictures whose class is unknown."""

Split = Literal["test_unseen", "test_seen"]


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
    """Explain pictures with the model that `open_model` finds by its name, and write page and sheets into the folder `out`.

    Without images, the first pictures of each class of the split are explained. `progress` is called after every batch with
    the numbers of explained pictures and of all.

    Raises:
        UserError: for a model without attention, or a picture or data set that cannot be read.
        TrackingError: when the store is unreachable, or does not have the run or model.
    """
    model = open_model(name, tracking_uri)
    check_explainable(model)
    if images:
        subjects, parts = [Subject(path, path.name, None) for path in images], None
    else:
        subjects = list(_subjects_of(model, data_root, split, per_class))
        parts = read_parts(data_root, model.config.benchmark.name)
    classes: dict[str, list[Explained]] = {}
    pointed: list[Pointed] = []
    config = model.config.benchmark.images
    for start in range(0, len(subjects), BATCH):
        batch = subjects[start : start + BATCH]
        views, answers = explain(model, batch, torch.stack([prepared_file(one.path, config) for one in batch]))
        for one in answers:
            classes.setdefault(one.subject.truth or UNKNOWN, []).append(one)
        if parts is not None:
            pointed += point(views, batch, parts, model.attribute_names, config)
        progress(start + len(batch), len(subjects))
    store = None if Path(name).exists() or registry_uri(name) else TrackingStore.connect(tracking_uri)
    made = Explanations(
        model=name,
        benchmark=model.config.benchmark.name,
        gamma=model.gamma,
        classes=classes,
        pointing=by_part(pointed) if pointed else {},
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
        page=out / "index.html",
        sheets=tuple(out / "sheets" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', title)}.png" for title in classes),
        run_id=store.find_run(name).run_id if store else None,
    )
    with replacing(made.page) as file:
        file.write(render(made).encode())
    for sheet, (title, pictures) in zip(made.sheets, classes.items(), strict=True):
        with replacing(sheet) as file:
            contact_sheet(title, pictures).save(file, format="PNG", optimize=True)
    if store and made.run_id:
        store.log_file(made.run_id, made.page, "explain")
        for sheet in made.sheets:
            store.log_file(made.run_id, sheet, "explain/sheets")
    return made


def _subjects_of(model: LoadedModel, data_root: Path, split: Split, per_class: int) -> Iterator[Subject]:
    """The first pictures of each class of a split."""
    data = load_final(data_root, model.config.benchmark)
    images = data.unseen if split == "test_unseen" else data.seen
    for label in np.unique(images.labels):
        for row in np.flatnonzero(images.labels == label)[:per_class].tolist():
            yield Subject(images.path(row), images.files[row], data.classes.names[label])
