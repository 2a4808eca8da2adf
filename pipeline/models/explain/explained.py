"""One picture explained: the answer, the class it was preferred to, the attributes that decided, and what every level looked at.

P pixels of a side of the network's input, K regions, A attributes that decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mgmrn.checkpoint import LoadedModel
from mgmrn.config import ImageConfig, Level, MgMRNConfig
from mgmrn.errors import UserError
from mgmrn.explanation import LevelView, contributions, decide, decisive, look
from mgmrn.localisation import interpolate
from mgmrn.model.network import MgMRN, class_scores

DECISIVE = 6
"""Attributes that are shown per picture."""


@dataclass(frozen=True)
class Subject:
    """A picture that is to be explained."""

    path: Path
    file: str
    """What it is called."""
    truth: str | None
    """Its class, where it is known."""


@dataclass(frozen=True)
class Candidate:
    """A class that was considered."""

    name: str
    seen: bool
    score: float
    """Calibrated."""


@dataclass(frozen=True)
class Reason:
    """What an attribute adds to the score of the best class less that of the runner-up."""

    attribute: str
    by_level: Mapping[Level, float]

    @property
    def total(self) -> float:
        """Over the levels."""
        return sum(self.by_level.values())


@dataclass(frozen=True)
class LevelMaps:
    """What a level looked at."""

    level: Level
    regions: Float[Tensor, "K P P"] | None
    attention: Float[Tensor, "A P P"]
    """In the order of the reasons."""


@dataclass(frozen=True)
class Explained:
    """All that is told of one picture."""

    subject: Subject
    pixels: UInt8[np.ndarray, "P P 3"]
    """The picture as the network sees it."""
    best: Candidate
    runner_up: Candidate
    reasons: tuple[Reason, ...]
    """The attributes that tell the two apart most, for either."""
    others: float
    """What all other attributes add together."""
    handicap: float
    """What γ adds."""
    levels: tuple[LevelMaps, ...]

    @property
    def margin(self) -> float:
        """Of the best class: reasons, other attributes and handicap together."""
        return self.best.score - self.runner_up.score


@dataclass(frozen=True)
class Looked:
    """A batch that went through a network."""

    views: dict[Level, LevelView]
    explained: tuple[Explained, ...]


def check_explainable(model: LoadedModel) -> tuple[MgMRN, MgMRNConfig]:
    """The part of a model that attends to something.

    Raises:
        UserError: when it has none.
    """
    head, config = model.network.head, model.config.model
    if not (isinstance(head, MgMRN) and isinstance(config, MgMRNConfig)):
        raise UserError(f"a model of kind {config.kind} attends to nothing", "RUN|MODEL", "explain one of Mg-MRN")
    if len(model.class_names) < 2:
        raise UserError("the model knows a single class", "RUN|MODEL", "there is nothing to choose between")
    return head, config


@torch.inference_mode()
def explain(model: LoadedModel, subjects: Sequence[Subject], images: Float[Tensor, "B 3 P P"]) -> Looked:
    """Explains a batch.

    Args:
        model: on the CPU.
        subjects: what the images are.
        images: as `for_evaluation` makes them.
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
    return Looked(views, tuple(explained))


def visible(image: Float[Tensor, "3 P P"], config: ImageConfig) -> UInt8[np.ndarray, "P P 3"]:
    """A network's input as a picture again."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _candidate(model: LoadedModel, scores: Float[np.ndarray, " U"], number: int) -> Candidate:
    seen = bool(model.seen[number])
    return Candidate(model.class_names[number], seen, float(scores[number]) - model.gamma * seen)


def _maps(level: Level, view: LevelView, row: int, chosen: Sequence[int], size: int) -> LevelMaps:
    regions = None if view.regions is None else interpolate(view.regions.values[row], view.regions.cells, size)
    return LevelMaps(level, regions, view.attention_on_input(row, chosen, size))
