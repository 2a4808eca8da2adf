"""Localisation: how often the attention of an attribute falls on the part that it names, over all test images of a split."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mgmrn.checkpoint import TrainedModel
from mgmrn.config import ImageConfig, Level
from mgmrn.data.feature_cache import ensure_cache
from mgmrn.data.loading import prefetch
from mgmrn.data.pictures import read_picture
from mgmrn.data.splits import FinalData, Images, evaluation_images, load_final
from mgmrn.device import usual_device
from mgmrn.errors import UserError
from mgmrn.explanation import LevelView, look
from mgmrn.feed import MapSource, PictureSource
from mgmrn.localisation import Box, box_on_input, hits
from mgmrn.model.network import levels_of, summed_directions
from mgmrn.parts import AttributeGroup, Part, read_parts
from mgmrn.weights import is_weights_file
from pipeline import places
from pipeline.analysis.runs import LOCALISED
from pipeline.console import say
from pipeline.models.predict import open_model
from pipeline.models.reasons import check_explainable
from pipeline.tracking.registry import registry_uri
from pipeline.tracking.store import TrackedRun, TrackingStore

ALL_LEVELS, ALL_PARTS = "all levels", "all parts"

Split = Literal["test_unseen", "test_seen"]
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Level → part → value of each of `LOCALISED`, and number of `maps`; the last level and the first part are all together."""
Measured = tuple[str, str, float, float, float, float]
"""Level, part, and the `LOCALISED` of one map."""


@dataclass(frozen=True)
class Localisation:
    """Localisation of a model on the pictures of a split."""

    model: str
    benchmark: str
    split: Split
    pictures: int
    figures: Figures
    run_id: str | None
    """Run that has the figures as metrics; None for the model of a file or of the registry."""


def run_localise(
    name: str, split: Split, tracking_uri: str, data_root: Path, progress: Callable[[int, int], None]
) -> Localisation:
    """Localisation of the model that `open_model` finds by its name, logged with its run.

    Raises `UserError` for a model without attention, a data set that cannot be read or has no annotated parts, and `TrackingError` when the
    store is unreachable, or does not have the run or model.
    """
    model = open_model(name, tracking_uri)
    check_explainable(model)
    data = load_final(data_root, model.config.benchmark)
    figures = localise(model, data, split, progress)
    images = pictures_of(data, split)
    if not figures:
        message = f"{data.benchmark} has no annotated parts that its attributes name"
        hint = "CUB has them in CUB_200_2011/parts, drawings and stand-ins since they are made with parts.json"
        raise UserError(message, str(images.root), hint)
    tracked = run_of(name, tracking_uri)
    if tracked:
        log_figures(*tracked, split, figures)
    return Localisation(name, data.benchmark, split, len(images), figures, tracked[1].run_id if tracked else None)


def pictures_of(data: FinalData, split: Split) -> Images:
    """Pictures of a split's name."""
    return data.unseen if split == "test_unseen" else data.seen


def run_of(name: str, tracking_uri: str) -> tuple[TrackingStore, TrackedRun] | None:
    """The run that a model's name is that of; None for the name of a file or of a registered model."""
    if Path(name).exists() or registry_uri(name):
        return None
    store = TrackingStore.open(tracking_uri)
    return store, store.find_run(name)


def log_figures(store: TrackingStore, run: TrackedRun, split: Split, figures: Figures) -> None:
    """Log the figures as `localise/SPLIT/LEVEL/PART/FIGURE`; those that the run has already are not logged again."""
    found = {
        f"localise/{split}/{level}/{part}/{key}".replace(" ", "_"): value[key]
        for level, parts in figures.items()
        for part, value in parts.items()
        for key in LOCALISED
    }
    new = {key: value for key, value in found.items() if run.metrics.get(key) != value}
    if new:
        store.log_metrics(run.run_id, 0, new, int(time.time() * 1000))


@torch.inference_mode()
def localise(
    model: TrainedModel, data: FinalData, split: Split, progress: Callable[[int, int], None] = lambda done, total: None
) -> Figures:
    """Figures of the pictures of a split, of each level and of the sum of their attention; empty without annotated parts.

    Where the part is visible, each group of attributes counts with the map of the one that the model finds strongest in the picture, as in
    APN (see `mgmrn.localisation.hits`).
    """
    head, config = check_explainable(model)
    images, prepared = pictures_of(data, split), model.config.benchmark.images
    if (parts := read_parts(images, model.attribute_names)) is None:
        return {}
    measured: list[Measured] = []
    done = 0
    for maps in _maps(model, data, split):
        views = look(head, config, maps, prepared.size)
        strengths = summed_directions({level: view.attributes for level, view in views.items()}).cpu()
        for image, of_image in enumerate(strengths):
            strongest = {group: rows[int(of_image[rows].argmax())] for group, rows in parts.groups.items()}
            visible = parts.pictures.get(images.files[done], {})
            boxes = _boxes_on_input(visible, images.path(done), prepared)
            measured += _measure(views, image, strongest, boxes, prepared.size)
            done += 1
        progress(done, len(images))
    return _means(measured)


def _maps(model: TrainedModel, data: FinalData, split: Split) -> Iterator[dict[Level, Tensor]]:
    """Maps `B C h w` of the pictures of a split, from the cache where the model was trained on one."""
    config, device = model.config, usual_device()
    network, weights = model.network.to(device), config.model.backbone.weights
    images = evaluation_images(data)
    source: MapSource | PictureSource = PictureSource(config, images, images, 0)
    # The weights' file may be gone, or the model be another machine's.
    if config.cache_features and (not is_weights_file(weights) or Path(weights).is_file()):
        described = (images, config.benchmark.images, config.model.backbone, levels_of(config.model))
        cached = ensure_cache(places.CACHE, *described, flip=config.mirror_scores, device=device, progress=say)
        source = MapSource(config, cached, cached)
    rows = np.arange(len(images))
    rows = rows[len(data.seen) :] if split == "test_unseen" else rows[: len(data.seen)]
    for inputs in prefetch(source.evaluation(rows, mirrored=False)):
        maps = network.backbone(inputs.to(device)) if isinstance(inputs, Tensor) else inputs
        yield {level: x.to(device, torch.float32) for level, x in maps.items()}


def _boxes_on_input(parts: Mapping[str, Part], path: Path, config: ImageConfig) -> dict[str, Box]:
    """Boxes of a picture's parts in the network's input, without those that are cropped away."""
    height, width = read_picture(path).shape[1:]
    found = {name: box_on_input(part.box(width, height), width, height, config) for name, part in parts.items()}
    return {name: box for name, box in found.items() if box[0] < box[2] and box[1] < box[3]}


def _measure(
    views: Mapping[Level, LevelView],
    image: int,
    attributes: Mapping[AttributeGroup, int],
    boxes: Mapping[str, Box],
    size: int,
) -> Iterator[Measured]:
    """The map of each group's attribute for one picture of a batch, on each level and summed, if the part has a box."""
    shown = [group for group in attributes if boxes.keys() & group.annotated]
    if not shown:
        return
    found = {group.annotated: torch.tensor([boxes[n] for n in group.annotated if n in boxes]) for group in shown}
    tables = {names: hits(of_part, size).flatten(1) for names, of_part in found.items()}
    chances = {names: table.float().mean(dim=1).tolist() for names, table in tables.items()}
    rows = [attributes[group] for group in shown]
    maps = {str(level): view.attention_on_input(image, rows, size) for level, view in views.items()}
    maps[ALL_LEVELS] = torch.stack(list(maps.values())).sum(dim=0)
    for level, attention in maps.items():
        for group, peak in zip(shown, attention.flatten(1).argmax(dim=1).tolist(), strict=True):
            pointing, pcp = tables[group.annotated][:, peak].tolist()
            yield level, group.part, pointing, chances[group.annotated][0], pcp, chances[group.annotated][1]


def _means(measured: Sequence[Measured]) -> Figures:
    table = pd.DataFrame(measured, columns=["level", "part", *LOCALISED])
    rows = pd.concat([table.assign(part=ALL_PARTS), table.sort_values("part", kind="stable")])
    grouped = rows.groupby(["level", "part"], sort=False)
    results = grouped.mean().assign(maps=grouped.size())
    levels = results.groupby("level", sort=False)
    by_level: dict[str, Any] = {str(level): found.droplevel("level").to_dict("index") for level, found in levels}
    return by_level
