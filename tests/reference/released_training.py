"""The released training step, written out plainly: three whole passes per batch, and the same as one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """Of the loss and of SGD; as released for CUB."""

    lr: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 1e-5
    regression: float = 0.1
    scale: float = 20.0


def make_optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD over all parameters."""
    return torch.optim.SGD(
        network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def level_loss(
    vectors: Float[Tensor, "B S"],
    targets: Int[Tensor, " B"],
    class_attributes: Float[Tensor, "U S"],
    settings: Settings,
) -> Float[Tensor, ""]:
    """Cross-entropy of the scaled cosines, and λ times the mean squared difference of unit vectors."""
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    classes = class_attributes / class_attributes.norm(dim=1, keepdim=True)
    scores = settings.scale * vectors @ classes.T
    return F.cross_entropy(scores, targets) + settings.regression * F.mse_loss(vectors, classes[targets])


def sequential_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Float[Tensor, "B 3 H W"],
    targets: Int[Tensor, " B"],
    class_attributes: Float[Tensor, "U S"],
    settings: Settings,
) -> float:
    """Per level, finest first: the whole network forward, that level's loss backward, a step. Gives the summed loss."""
    total = 0.0
    for level in range(3):
        optimiser.zero_grad()
        loss = level_loss(network(images)[level], targets, class_attributes, settings)
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total


def joint_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Float[Tensor, "B 3 H W"],
    targets: Int[Tensor, " B"],
    class_attributes: Float[Tensor, "U S"],
    settings: Settings,
) -> float:
    """One pass, the levels' losses summed, one step."""
    optimiser.zero_grad()
    losses = [level_loss(vectors, targets, class_attributes, settings) for vectors in network(images)]
    total = torch.stack(losses).sum()
    total.backward()
    optimiser.step()
    return total.item()
