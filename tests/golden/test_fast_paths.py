"""Our training steps against the released ones written out plainly: the same losses, gradients and weights over several steps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from mgmrn.config import (
    BackboneConfig,
    BenchmarkConfig,
    EpisodicSampling,
    ExperimentConfig,
    LossConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from mgmrn.engine import Batch, Trainer, build_trainer, train_epoch
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head
from tests.reference.released_checkpoint import load_released
from tests.reference.released_network import ReleasedNetwork, Sizes
from tests.reference.released_training import Settings, joint_step, make_optimiser, sequential_step

B, SEEN, STEPS = 4, 5, 2
SIZES = Sizes(width=64, attention_width=24, regions=3, attributes=9, word_length=10)

Order = Literal["sequential", "joint"]
BatchNorm = Literal["frozen", "train"]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_reference() -> ReleasedNetwork:
    torch.manual_seed(0)
    network = ReleasedNetwork(SIZES, draw(SIZES.attributes, SIZES.word_length, seed=1))
    smooth(network.backbone)
    return network


def smooth(trunk: torch.nn.Module) -> None:
    """Makes a trunk well conditioned: a deep one with kinks, as drawn, turns rounding into gradients that differ by percents.

    A maximum is a kink, too: of two pixels that are nearly equal, rounding decides which one learns, on one kind of CPU and not on another.
    """
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.MaxPool2d):
                setattr(module, name, torch.nn.AvgPool2d(3, stride=2, padding=1))
        if isinstance(getattr(module, "relu", None), torch.nn.ReLU):
            module.relu = torch.nn.SiLU()
        if isinstance(getattr(module, "bn3", None), torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bn3.weight, 0.1)


def make_ours(
    state: dict[str, Tensor],
    words: Tensor,
    order: Order,
    batch_norm: BatchNorm,
    settings: Settings,
    classes: Tensor,
) -> Trainer:
    model, weights = load_released(state)
    backbone = BackboneConfig(name="resnet101", weights="none", trainable="all", batch_norm=batch_norm)
    config = ExperimentConfig(
        benchmark=BenchmarkConfig(name="TINY"),
        model=model.model_copy(update={"backbone": backbone}),
        loss=LossConfig(scale=settings.scale, regression=settings.regression, regression_reduction="mean"),
        optimiser=OptimiserConfig(
            name="sgd",
            head_lr=settings.lr,
            backbone_lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
        schedule=ScheduleConfig(order=order, learning_rate="constant"),
        sampling=EpisodicSampling(ways=2, shots=2, episodes=STEPS),
    )
    pyramid = build_backbone(backbone, model.levels)
    smooth(pyramid)
    network = ImageModel(pyramid, build_head(config.model, pyramid.channels, words))
    network.load_state_dict({**weights, "head.word_vectors": words})
    return build_trainer(
        network,
        classes,
        config,
        levels=model.levels,
        global_batch=B,
        steps_per_epoch=STEPS,
        device=torch.device("cpu"),
    )


def run(
    order: Order, batch_norm: BatchNorm, settings: Settings, steps: int = STEPS
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """State before, after the plain steps, and after ours; in our names."""
    reference = make_reference().train(batch_norm == "train")
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    classes = torch.rand(SEEN, SIZES.attributes, generator=torch.Generator().manual_seed(2))
    trainer = make_ours(before, reference.words, order, batch_norm, settings, classes)
    optimiser = make_optimiser(reference, settings)
    step = {"sequential": sequential_step, "joint": joint_step}[order]
    for number in range(steps):
        images, targets = draw(B, 3, 64, 64, seed=10 + number), torch.tensor([0, 0, 3, 4])
        wanted = step(reference, optimiser, images, targets, classes, settings)
        found = train_epoch(trainer, [Batch(images, targets, np.arange(B))]).loss["total"]
        assert found == pytest.approx(wanted, rel=1e-5)
    return load_released(before)[1], load_released(reference.state_dict())[1], trainer.network.state_dict()


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_several_steps_change_every_weight_as_the_plain_ones_do(order: Order) -> None:
    # Ours spares norms and biases from weight decay, as the released code does not; without any, all updates must be the same.
    before, plain, ours = run(order, "frozen", Settings(lr=3e-3, weight_decay=0.0))
    parameters = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    trained: list[bool] = []
    for name in parameters:
        wanted, found = plain[name] - before[name], ours[name] - before[name]
        if name.endswith((".centres", ".smoothing", ".key.bias")):
            # What they change cancels: the plain gradient is rounding error, and ours is none.
            assert wanted.abs().max() < 1e-5, name
            continue
        trained.append(bool(found.any()))
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-5)
        # A change cannot be finer than the rounding of the weight.
        assert (found - wanted).norm() < 1e-3 * wanted.norm() + 1e-6 * plain[name].norm(), name
    # Some gradients of a frozen norm are smaller than the rounding of its weight.
    assert sum(trained) > 0.8 * len(trained)


def test_three_passes_a_batch_leave_the_statistics_of_the_plain_ones() -> None:
    # A rate of nearly nothing: in train mode a batch of four turns rounding into other trajectories.
    before, plain, ours = run("sequential", "train", Settings(lr=1e-9), steps=1)
    for name in [name for name in before if "running" in name]:
        assert not torch.equal(ours[name], before[name]), name
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-5)
    assert int(ours["backbone.bn1.num_batches_tracked"]) == 3
