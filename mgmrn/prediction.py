"""Predictions of a trained model: the best classes, and the attributes that decided between the first two.

B images, U classes, S attributes. With unit vectors v̂_l (of an image, on level l) and â_u (of a class),

    calibrated score of class u     scale · Σ_l ⟨v̂_l, â_u⟩ − γ · [u is seen]
    margin of attribute s           scale · Σ_l v̂_l,s · (â_first,s − â_second,s)

for the two best classes. The margins of all attributes add up to the difference of the two scores before γ; a positive
one favours the first class, a negative one the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mgmrn.checkpoint import TrainedModel
from mgmrn.data.class_table import GivenClasses, plain_name
from mgmrn.model.network import class_scores, summed_directions

BATCH = 32
"""Pictures per forward pass."""


@dataclass(frozen=True)
class RankedClass:
    """A class with its score."""

    name: str
    seen: bool
    score: float
    """Calibrated."""


@dataclass(frozen=True)
class DecidingAttribute:
    """An attribute that separates the best class from the second."""

    name: str
    margin: float


@dataclass(frozen=True)
class Answer:
    """The prediction for one picture."""

    classes: tuple[RankedClass, ...]
    """Best first."""
    attributes: tuple[DecidingAttribute, ...]
    """Largest margin first; empty with a single class."""


@dataclass(frozen=True)
class Scored:
    """Output of a network for a batch, on the CPU."""

    directions: Float[Tensor, "B S"]
    """Σ_l v̂_l."""
    calibrated: Float[np.ndarray, "B U"]


def with_classes(model: TrainedModel, given: GivenClasses) -> TrainedModel:
    """The model with other classes to choose from; those with the name of a training class count as seen.

    Raises UserError when the classes are not described by the model's attributes.
    """
    trained_on = {plain_name(name) for name, seen in zip(model.class_names, model.seen, strict=True) if seen}
    return replace(
        model,
        class_names=given.names,
        class_attributes=torch.from_numpy(given.attributes(model.attribute_names)),
        seen=np.array([name in trained_on for name in given.names]),
    )


@torch.inference_mode()
def score(model: TrainedModel, images: Float[Tensor, "B 3 H W"]) -> Scored:
    """Scores prepared pictures (see `mgmrn.data.images.for_evaluation`) on the network's device."""
    device = next(model.network.parameters()).device
    views = [images, images.flip(3)] if model.config.mirror_scores else [images]
    found = [{level: v.cpu() for level, v in model.network(x.to(device)).attributes.items()} for x in views]
    scores = [class_scores(attributes, model.class_attributes, model.config.loss.scale) for attributes in found]
    directions = torch.stack([summed_directions(attributes) for attributes in found]).mean(dim=0)
    calibrated = torch.stack(scores).mean(dim=0).numpy() - np.float32(model.gamma) * model.seen
    return Scored(directions, calibrated)


def answer(model: TrainedModel, scored: Scored, classes: int, attributes: int) -> list[Answer]:
    """The answer for each picture of a scored batch, with at most so many classes and attributes."""
    order = np.argsort(-scored.calibrated, axis=1, kind="stable")
    unit = F.normalize(model.class_attributes.float(), dim=1)
    first, second = order[:, 0], order[:, :2][:, -1]
    margins = (model.config.loss.scale * scored.directions * (unit[first] - unit[second])).numpy()
    decisive = np.argsort(-margins, axis=1, kind="stable")[:, : attributes if order.shape[1] > 1 else 0]
    return [
        Answer(
            tuple(
                RankedClass(model.class_names[u], bool(model.seen[u]), float(scored.calibrated[row, u]))
                for u in order[row, :classes]
            ),
            tuple(DecidingAttribute(model.attribute_names[s], float(margins[row, s])) for s in decisive[row]),
        )
        for row in range(len(order))
    ]
