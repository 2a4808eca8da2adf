"""A small network and its training data, for any device."""

import numpy as np
import torch

from mgmrn.config import BackboneConfig, BenchmarkConfig, ExperimentConfig, OptimiserConfig, ScheduleConfig
from mgmrn.engine import Batch, Trainer, build_trainer
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head
from tests.tiny import small_network

SEEN, ATTRIBUTES, IMAGES, SIDE = 5, 9, 8, 64
TEN_TIMES_ROUNDING = 1e-2
"""Bound for the disagreement of two float32 trainings after six to nine steps. A training and its float64 twin disagree by
at most 1.3e-3, with AVX-512, AVX2 and SSE alike."""


def experiment(order: str = "joint", **changed: object) -> ExperimentConfig:
    """ResNet-18 finetuned in float32 by SGD; `changed` are fields of the schedule, `accumulate` and `clip_norm`.

    At these rates rounding stays small over nine steps; at ten times these rates it does not.
    """
    optimiser = {name: changed.pop(name) for name in ("accumulate", "clip_norm") if name in changed}
    return ExperimentConfig(
        benchmark=BenchmarkConfig(name="TINY"),
        model=small_network(
            levels=("c3", "c4", "c5"),
            width=16,
            backbone=BackboneConfig(name="resnet18", weights="none", trainable="all", batch_norm="frozen"),
        ),
        optimiser=OptimiserConfig(name="sgd", head_lr=0.001, backbone_lr=0.0001, **optimiser),
        schedule=ScheduleConfig(epochs=4, order=order, **{"precision": "float32", **changed}),
    )


def on_maps(config: ExperimentConfig, **schedule: object) -> ExperimentConfig:
    """The same with a frozen backbone, so that its head is trained on maps; `schedule` are fields of the schedule."""
    frozen = config.model.backbone.model_copy(update={"trainable": "none"})
    model = config.model.model_copy(update={"backbone": frozen})
    changed = config.schedule.model_copy(update=schedule)
    return config.model_copy(update={"cache_features": True, "model": model, "schedule": changed})


def new_trainer(config: ExperimentConfig, device: torch.device) -> Trainer:
    """A trainer; its weights do not depend on the device."""
    torch.manual_seed(0)
    backbone = build_backbone(config.model.backbone, config.model.levels)
    head = build_head(config.model, backbone.channels, torch.randn(ATTRIBUTES, 6))
    network = head if config.cache_features else ImageModel(backbone, head)
    sizes = {"global_batch": IMAGES, "steps_per_epoch": 3}
    return build_trainer(network, torch.rand(SEEN, ATTRIBUTES), config, device=device, **sizes)


def batches(epoch: int, count: int = 3) -> list[Batch]:
    """Batches of one epoch, on the CPU."""
    generator = torch.Generator().manual_seed(epoch)
    return [
        Batch(
            torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator),
            torch.randint(SEEN, (IMAGES,), generator=generator),
            np.arange(IMAGES * step, IMAGES * (step + 1)),
        )
        for step in range(count)
    ]


def map_batches(epoch: int, count: int = 3) -> list[Batch]:
    """The same of maps in place of images."""
    generator = torch.Generator().manual_seed(epoch)
    shapes = {"c3": (128, 8, 8), "c4": (256, 4, 4), "c5": (512, 2, 2)}

    def drawn() -> dict[str, torch.Tensor]:
        return {level: torch.rand(IMAGES, *shape, generator=generator) for level, shape in shapes.items()}

    return [Batch(drawn(), batch.targets, batch.ids) for batch in batches(epoch, count)]


def disagreement(first: Trainer, second: Trainer) -> float:
    """Distance of two networks' weights, relative to the distance of the first from its initial weights."""
    weights = [_weights(trainer) for trainer in (first, second, new_trainer(first.config, torch.device("cpu")))]
    return float((weights[1] - weights[0]).norm() / (weights[2] - weights[0]).norm())


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.detach().cpu().double().flatten() for value in trainer.network.state_dict().values()])
