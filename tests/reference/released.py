"""The released network and its training step, written out plainly: three whole passes per batch, or one.

B images, S attributes, U classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models import get_model

from mgmrn.config import MgMRNConfig
from mgmrn.model.network import MgMRN
from mgmrn.trunks import TRUNKS
from tests.reference.plain_head import PlainHead

Images = Float[Tensor, "B 3 H W"]
LossOf = Callable[[Float[Tensor, "B S"]], Float[Tensor, ""]]
"""Loss of a level's attribute vectors."""


@dataclass(frozen=True)
class Settings:
    """Settings of the loss and of SGD, as released for CUB."""

    lr: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 1e-5
    regression: float = 0.1
    scale: float = 20.0


class ReleasedNetwork(nn.Module):
    """Network from images to the attribute vectors of c3, c4 and c5; its config is that of `cub-released` at any width."""

    def __init__(self, config: MgMRNConfig, words: Float[Tensor, "S L"]) -> None:
        super().__init__()
        channels = dict(zip(("c2", "c3", "c4", "c5"), TRUNKS[config.backbone.name].channels, strict=True))
        self.backbone = get_model(config.backbone.name, weights=None)
        self.backbone.fc = nn.Identity()
        self.head = PlainHead(MgMRN(config, channels, words).state_dict(), config)

    def forward(self, images: Images) -> list[Float[Tensor, "B S"]]:
        trunk = self.backbone
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        maps = {"c3": trunk.layer2(trunk.layer1(x))}
        maps["c4"] = trunk.layer3(maps["c3"])
        maps["c5"] = trunk.layer4(maps["c4"])
        return list(self.head(maps).values())

    def named(self) -> dict[str, Tensor]:
        """Weights and statistics under the names of `mgmrn.model.network.ImageModel`."""
        trunk = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        return trunk | {f"head.{name}": value.detach() for name, value in self.head.named().items()}


def make_optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return torch.optim.SGD(network.parameters(), **rates)


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
    network: ReleasedNetwork, optimiser: torch.optim.Optimizer, images: Images, loss_of: LossOf
) -> float:
    """Summed loss of three steps, finest level first: the whole network forward, the level's loss backward, a step."""
    total = 0.0
    for level in range(3):
        optimiser.zero_grad()
        loss = loss_of(network(images)[level])
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total


def joint_step(network: ReleasedNetwork, optimiser: torch.optim.Optimizer, images: Images, loss_of: LossOf) -> float:
    """Loss of one pass and one step, summed over the levels."""
    optimiser.zero_grad()
    total = torch.stack([loss_of(vectors) for vectors in network(images)]).sum()
    total.backward()
    optimiser.step()
    return total.item()
