"""Reasons of a model's answers: the attributes that decided between the best two classes, and where each level attended.

The pointing game measures whether the attention of an attribute falls on its part, where boxes of parts are known.

P: pixels of a side of the network's input. K: regions. A: attributes that decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mgmrn.checkpoint import LoadedModel
from mgmrn.config import ImageConfig, Level, MgMRNConfig
from mgmrn.errors import UserError
from mgmrn.explanation import LevelView, contributions, decide, decisive, look
from mgmrn.localisation import box_on_input, chance_of, interpolate, points_at
from mgmrn.makers.synthetic import Parts, part_of
from mgmrn.model.network import MgMRN, class_scores

DECISIVE = 6
"""Number of attributes shown per picture."""
ALL_LEVELS = "all levels"
ALL_PARTS = "all parts"


@dataclass(frozen=True)
class Subject:
    """A picture to explain."""

    path: Path
    file: str
    """Name in the benchmark, or of the file."""
    truth: str | None
    """Class; None if unknown."""


@dataclass(frozen=True)
class Candidate:
    """One of the best two classes."""

    name: str
    seen: bool
    score: float
    """Calibrated score."""


@dataclass(frozen=True)
class Reason:
    """Contribution of an attribute to the score of the best class less that of the runner-up."""

    attribute: str
    by_level: Mapping[Level, float]

    @property
    def total(self) -> float:
        """Sum over the levels."""
        return sum(self.by_level.values())


@dataclass(frozen=True)
class LevelMaps:
    """Maps of one level on the network's input."""

    level: Level
    regions: Float[Tensor, "K P P"] | None
    attention: Float[Tensor, "A P P"]
    """Attention of the deciding attributes, in the order of the reasons."""


@dataclass(frozen=True)
class Explained:
    """The answer for one picture and its reasons."""

    subject: Subject
    pixels: UInt8[np.ndarray, "P P 3"]
    """The picture as the network sees it."""
    best: Candidate
    runner_up: Candidate
    reasons: tuple[Reason, ...]
    """The attributes with the largest contributions, of either sign."""
    others: float
    """Contribution of all other attributes together."""
    handicap: float
    """Contribution of γ."""
    levels: tuple[LevelMaps, ...]

    @property
    def margin(self) -> float:
        """Lead of the best class: the sum of reasons, others and handicap."""
        return self.best.score - self.runner_up.score


@dataclass(frozen=True)
class Pointed:
    """Attention of one attribute in one picture."""

    level: str
    part: str
    hit: bool
    """Whether the largest attention lies in the part's box."""
    chance: float
    """Share of the input that the box covers."""


@dataclass(frozen=True)
class Pointing:
    """Result of the pointing game over several maps."""

    accuracy: float
    """Share of maps whose largest attention lies in the part's box."""
    chance: float
    """Share expected of a random pixel."""
    maps: int

    @property
    def ratio(self) -> float:
        """Accuracy in units of chance."""
        return self.accuracy / self.chance if self.chance else 0.0


def check_explainable(model: LoadedModel) -> tuple[MgMRN, MgMRNConfig]:
    """Head and config of a model with attention.

    Raises:
        UserError: for a model without attention, or with a single class.
    """
    head, config = model.network.head, model.config.model
    if not (isinstance(head, MgMRN) and isinstance(config, MgMRNConfig)):
        raise UserError(f"a model of kind {config.kind} attends to nothing", "RUN|MODEL", "explain one of Mg-MRN")
    if len(model.class_names) < 2:
        raise UserError("the model knows a single class", "RUN|MODEL", "there is nothing to choose between")
    return head, config


@torch.inference_mode()
def explain(
    model: LoadedModel, subjects: Sequence[Subject], images: Float[Tensor, "B 3 P P"]
) -> tuple[dict[Level, LevelView], list[Explained]]:
    """Explains a batch of pictures; returns the view of each level, and the explanation of each picture.

    Args:
        model: on the CPU.
        subjects: pictures of the batch.
        images: the same as inputs, made by `for_evaluation`.
    """
    head, config = check_explainable(model)
    views = look(head, config, model.network.backbone(images))
    attributes = {level: view.attributes for level, view in views.items()}
    scale = model.config.loss.scale
    scores = class_scores(attributes, model.class_attributes, scale).numpy()
    decisions = [decide(row, model.seen, model.gamma) for row in scores]
    best, runner_up = (
        contributions(attributes, model.class_attributes[torch.tensor(rows)], scale)
        for rows in ([one.best for one in decisions], [one.runner_up for one in decisions])
    )
    differences = (best - runner_up).numpy()
    explained = []
    for row, (subject, decision) in enumerate(zip(subjects, decisions, strict=True)):
        totals = differences[row].sum(axis=0)
        chosen = decisive(totals, DECISIVE).tolist()
        explained.append(
            Explained(
                subject,
                visible(images[row], model.config.benchmark.images),
                _candidate(model, scores[row], decision.best),
                _candidate(model, scores[row], decision.runner_up),
                tuple(
                    Reason(
                        model.attribute_names[s],
                        {level: float(differences[row, i, s]) for i, level in enumerate(views)},
                    )
                    for s in chosen
                ),
                float(totals.sum() - totals[chosen].sum()),
                decision.handicap,
                tuple(_maps(level, view, row, chosen, images.shape[-1]) for level, view in views.items()),
            )
        )
    return views, explained


def point(
    views: Mapping[Level, LevelView],
    subjects: Sequence[Subject],
    parts: Mapping[str, Parts],
    names: Sequence[str],
    config: ImageConfig,
) -> list[Pointed]:
    """Attention of every attribute that each picture shows, on each level and on all levels together.

    Args:
        views: of the batch, by level.
        subjects: pictures of the batch.
        parts: boxes and attributes by file.
        names: attributes in the order of the views.
        config: transformation of pictures to inputs.
    """
    rows = {name.replace("_", " "): number for number, name in enumerate(names)}
    found = []
    for image, subject in enumerate(subjects):
        shown = {name: box for name, box in parts[subject.file].shown().items() if name in rows}
        if not shown:
            continue
        with Image.open(subject.path) as picture:
            width, height = picture.size
        boxes = torch.tensor([box_on_input(box, width, height, config) for box in shown.values()])
        chances = chance_of(boxes, config.size).tolist()
        chosen = [rows[name] for name in shown]
        maps = {str(level): view.attention_on_input(image, chosen, config.size) for level, view in views.items()}
        maps[ALL_LEVELS] = torch.stack(list(maps.values())).sum(dim=0)
        for level, attention in maps.items():
            for name, hit, chance in zip(shown, points_at(attention, boxes).tolist(), chances, strict=True):
                found.append(Pointed(level, str(part_of(name)), hit, chance))
    return found


def by_part(pointed: Sequence[Pointed]) -> dict[str, dict[str, Pointing]]:
    """Level → part → result; `ALL_PARTS` comes first."""
    table: dict[str, dict[str, list[Pointed]]] = {}
    for one in pointed:
        for part in (ALL_PARTS, one.part):
            table.setdefault(one.level, {}).setdefault(part, []).append(one)
    return {
        level: {
            part: Pointing(fmean(one.hit for one in found), fmean(one.chance for one in found), len(found))
            for part, found in parts.items()
        }
        for level, parts in table.items()
    }


def visible(image: Float[Tensor, "3 P P"], config: ImageConfig) -> UInt8[np.ndarray, "P P 3"]:
    """Picture of an input of the network, with the normalisation undone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _candidate(model: LoadedModel, scores: Float[np.ndarray, " U"], number: int) -> Candidate:
    seen = bool(model.seen[number])
    return Candidate(model.class_names[number], seen, float(scores[number]) - model.gamma * seen)


def _maps(level: Level, view: LevelView, row: int, chosen: Sequence[int], size: int) -> LevelMaps:
    regions = None if view.regions is None else interpolate(view.regions.values[row], view.regions.cells, size)
    return LevelMaps(level, regions, view.attention_on_input(row, chosen, size))
