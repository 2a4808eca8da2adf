"""Training steps of `mgmrn` against the released ones written out plainly: the same losses and weights.

The backbone is a ResNet-50, whose stages have the shapes of the released ResNet-101. Several steps are compared in float64. Float32
rounds differently on every kind of CPU, and kinks (ReLU, maxima) multiply the difference at every step.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache
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
from tests.double import TOLERANCE, float64
from tests.reference.released_checkpoint import load_released
from tests.reference.released_network import ReleasedNetwork, Sizes
from tests.reference.released_training import Settings, joint_step, make_optimiser, sequential_step

B, SEEN, STEPS = 2, 5, 2
SIZES = Sizes(backbone="resnet50", width=64, attention_width=24, regions=3, attributes=9, word_length=10)

Order = Literal["sequential", "joint"]
BatchNorm = Literal["frozen", "train"]
State = dict[str, Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def drawn_reference() -> ReleasedNetwork:
    torch.manual_seed(0)
    return ReleasedNetwork(SIZES, draw(SIZES.attributes, SIZES.word_length, seed=1))


def make_ours(
    state: State,
    words: Tensor,
    order: Order,
    batch_norm: BatchNorm,
    settings: Settings,
    classes: Tensor,
) -> Trainer:
    model, weights = load_released(state, "resnet50")
    backbone = BackboneConfig(name="resnet50", weights="none", trainable="all", batch_norm=batch_norm)
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
    order: Order, batch_norm: BatchNorm, settings: Settings, steps: int, dtype: torch.dtype = torch.float64
) -> tuple[State, State, State]:
    """State before, after the plain steps, and after those of `mgmrn`, in the names of `mgmrn`; the same start for every dtype."""
    reference = deepcopy(drawn_reference()).train(batch_norm == "train").to(dtype)
    reference.words = reference.words.to(dtype)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    classes = torch.rand(SEEN, SIZES.attributes, generator=torch.Generator().manual_seed(2)).to(dtype)
    batches = [(draw(B, 3, 64, 64, seed=10 + number).to(dtype), torch.tensor([0, 3])) for number in range(steps)]
    step = {"sequential": sequential_step, "joint": joint_step}[order]
    with float64() if dtype is torch.float64 else nullcontext():
        trainer = make_ours(before, reference.words, order, batch_norm, settings, classes)
        optimiser = make_optimiser(reference, settings)
        for images, targets in batches:
            wanted = step(reference, optimiser, images, targets, classes, settings)
            found = train_epoch(trainer, [Batch(images, targets, np.arange(B))]).loss["total"]
            assert found == pytest.approx(wanted, rel=1e-9 if dtype is torch.float64 else 1e-5)
        plain = reference.state_dict()
        return load_released(before, "resnet50")[1], load_released(plain, "resnet50")[1], trainer.network.state_dict()


# Norms and biases are spared from weight decay, unlike in the released code; without decay all updates must be the same.
SETTINGS = Settings(lr=1e-2, weight_decay=0.0)


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_several_steps_change_every_weight_as_the_plain_ones_do(order: Order) -> None:
    before, plain, ours = run(order, "frozen", SETTINGS, STEPS)
    for name in changed_by_training(before):
        assert ours[name].dtype == plain[name].dtype == torch.float64
        torch.testing.assert_close(ours[name], plain[name], **TOLERANCE)
        if name.endswith((".centres", ".smoothing", ".key.bias")):
            # Changes of these cancel in the result: the plain gradient is rounding error, that of `mgmrn` is zero.
            assert (plain[name] - before[name]).abs().max() < 1e-9, name
        else:
            assert not torch.equal(ours[name], before[name]), name


def test_a_step_in_float32_is_as_exact_as_the_plain_one() -> None:
    """The yardstick is the error of the plain step on the same CPU."""
    before, exact, _ = run("joint", "frozen", SETTINGS, 1)
    _, plain, ours = run("joint", "frozen", SETTINGS, 1, torch.float32)
    names = changed_by_training(before)

    def error(found: State) -> float:
        return float(torch.stack([(found[name].double() - exact[name]).norm() for name in names]).norm())

    assert {ours[name].dtype for name in names} == {torch.float32}
    assert error(plain) < 0.01 * error(before)
    assert error(ours) < 10 * error(plain)


def test_three_passes_a_batch_leave_the_statistics_of_the_plain_ones() -> None:
    # A rate of nearly nothing: batch norms in train mode multiply the rounding of every update.
    before, plain, ours = run("sequential", "train", Settings(lr=1e-9), 1)
    for name in [name for name in before if "running" in name]:
        assert not torch.equal(ours[name], before[name]), name
        torch.testing.assert_close(ours[name], plain[name], **TOLERANCE)
    assert int(ours["backbone.bn1.num_batches_tracked"]) == 3


def changed_by_training(state: State) -> list[str]:
    """Names of the parameters in a state of weights and statistics."""
    return [name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
