"""Reasons of a model's answers: the attributes that decide between the best two classes, and where each level attends.

B: pictures of a batch. P: pixels of a side of the network's input. K: regions. A: attributes that decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mgmrn.checkpoint import TrainedModel
from mgmrn.config import ImageConfig, Level, MgMRNConfig
from mgmrn.errors import UserError
from mgmrn.explanation import best_two, contributions, look
from mgmrn.localisation import interpolate
from mgmrn.model.network import MgMRN, class_scores
from mgmrn.prediction import RankedClass

DECISIVE = 6


@dataclass(frozen=True)
class Subject:
    """A picture to explain, with its name in the benchmark and its class, if it is known."""

    path: Path
    file: str
    truth: str | None


@dataclass(frozen=True)
class Reason:
    """Contribution of an attribute to the score of the best class less that of the runner-up."""

    attribute: str
    by_level: Mapping[Level, float]

    @property
    def total(self) -> float:
        return sum(self.by_level.values())


@dataclass(frozen=True)
class LevelMaps:
    """Maps of one level on the network's input: its regions, those of its neighbours that its pixels used, and attributes' attention."""

    level: Level
    regions: Float[Tensor, "K P P"] | None
    used: Mapping[Level, Float[Tensor, "K P P"]]
    """Attention of each pixel to the regions of a neighbour, with the topology `regions`."""
    attention: Float[Tensor, "A P P"]


@dataclass(frozen=True)
class Explained:
    """The answer for one picture and its reasons."""

    subject: Subject
    pixels: UInt8[np.ndarray, "P P 3"]
    best: RankedClass
    runner_up: RankedClass
    reasons: tuple[Reason, ...]
    """The attributes with the largest contributions, of either sign."""
    others: float
    """Contribution of all other attributes together."""
    handicap: float
    levels: tuple[LevelMaps, ...]

    @property
    def margin(self) -> float:
        """Lead of the best class: the sum of reasons, others and handicap."""
        return self.best.score - self.runner_up.score


def check_explainable(model: TrainedModel) -> tuple[MgMRN, MgMRNConfig]:
    """Head and config of a model; one without attention or with a single class is a `UserError`."""
    head, config = model.network.head, model.config.model
    if not (isinstance(head, MgMRN) and isinstance(config, MgMRNConfig)):
        raise UserError(f"a model of kind {config.kind} attends to nothing", "RUN|MODEL", "explain one of Mg-MRN")
    if len(model.class_names) < 2:
        raise UserError("the model knows a single class", "RUN|MODEL", "there is nothing to choose between")
    return head, config


@torch.inference_mode()
def explain(model: TrainedModel, subjects: Sequence[Subject], images: Float[Tensor, "B 3 P P"]) -> list[Explained]:
    """Explanation of each picture of a batch, whose `images` are made by `for_evaluation`."""
    head, config = check_explainable(model)
    views = look(head, config, model.network.backbone(images), images.shape[-1])
    attributes = {level: view.attributes for level, view in views.items()}
    scale = model.config.loss.scale
    scores = class_scores(attributes, model.class_attributes, scale).numpy()
    firsts = best_two(scores, model.seen, model.gamma)
    best, runner_up = (contributions(attributes, model.class_attributes[rows], scale) for rows in firsts.T)
    differences = (best - runner_up).numpy()

    def ranked(row: int, number: int) -> RankedClass:
        seen = bool(model.seen[number])
        return RankedClass(model.class_names[number], seen, float(scores[row, number]) - model.gamma * seen)

    def maps(level: Level, row: int, chosen: Sequence[int]) -> LevelMaps:
        view, size = views[level], images.shape[-1]
        regions = None if view.regions is None else interpolate(view.regions.values[row], view.regions.cells, size)
        used = {m: interpolate(shares.values[row], shares.cells, size) for m, shares in view.used.items()}
        return LevelMaps(level, regions, used, view.attention_on_input(row, chosen, size))

    explained = []
    for row, (subject, (first, second)) in enumerate(zip(subjects, firsts.tolist(), strict=True)):
        totals = differences[row].sum(axis=0)
        chosen = np.argsort(-np.abs(totals), kind="stable")[:DECISIVE].tolist()
        by_level = (dict(zip(views, differences[row, :, number].tolist(), strict=True)) for number in chosen)
        reasons = map(Reason, [model.attribute_names[number] for number in chosen], by_level)
        explained.append(
            Explained(
                subject,
                visible(images[row], model.config.benchmark.images),
                ranked(row, first),
                ranked(row, second),
                tuple(reasons),
                float(totals.sum() - totals[chosen].sum()),
                model.gamma * (float(model.seen[second]) - float(model.seen[first])),
                tuple(maps(level, row, chosen) for level in views),
            )
        )
    return explained


def visible(image: Float[Tensor, "3 P P"], config: ImageConfig) -> UInt8[np.ndarray, "P P 3"]:
    """Picture of an input of the network, without its normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
