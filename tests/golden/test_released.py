"""`mgmrn` against the released network and its training, written out plainly: the same attributes, losses and weights.

Float64, in which rounding explains no difference; one step is compared in float32 too. The trunk is a ResNet-18.
"""

from contextlib import nullcontext
from copy import deepcopy
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mgmrn.config import ExperimentConfig
from mgmrn.engine import Batch, Trainer, build_trainer, train_epoch
from mgmrn.model.network import build_model
from pipeline.config.compose import load_experiment
from tests.double import TOLERANCE, float64
from tests.reference.released import ReleasedNetwork, Settings, joint_step, level_loss, make_optimiser, sequential_step

B, SEEN, ATTRIBUTES, STEPS, SIDE = 2, 5, 9, 2, 64
SMALL = ["model.backbone.name=resnet18", "model.backbone.weights=none", "model.width=64", "model.regions.count=3"]
SMALL += ["model.decoder.attention_width=24", "model.backbone.trainable=all", "model.backbone.trainable_stages=[]"]

State = dict[str, Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CLASSES = draw(SEEN, ATTRIBUTES, seed=2).abs()


def small_config(order: str, batch_norm: str, settings: Settings) -> ExperimentConfig:
    """The released experiment with a small network and the settings of the plain training."""
    s = settings
    changes = [f"schedule.order={order}", "schedule.learning_rate=constant", f"model.backbone.batch_norm={batch_norm}"]
    changes += [f"loss.scale={s.scale}", f"loss.regression={s.regression}", f"optimiser.weight_decay={s.weight_decay}"]
    changes += ["optimiser.name=sgd", f"optimiser.head_lr={s.lr}", f"optimiser.backbone_lr={s.lr}"]
    return load_experiment("cub-released", [*SMALL, *changes, f"optimiser.momentum={s.momentum}"]).config


@cache
def drawn_reference() -> ReleasedNetwork:
    torch.manual_seed(0)
    model = small_config("joint", "frozen", Settings()).model
    reference = ReleasedNetwork(model, draw(ATTRIBUTES, 10, seed=1))
    for name, value in reference.head.named().items():
        if name.endswith((".bias", ".centres", ".smoothing")):
            torch.nn.init.normal_(value.detach(), std=0.3)
    return reference


def make_ours(reference: ReleasedNetwork, config: ExperimentConfig) -> Trainer:
    state = reference.named()
    network = build_model(config.model, state["head.word_vectors"])
    network.load_state_dict(state)
    sizes = {"global_batch": B, "steps_per_epoch": STEPS}
    classes = CLASSES.to(torch.get_default_dtype())
    return build_trainer(network, classes, config, device=torch.device("cpu"), **sizes)


def run(order: str, batch_norm: str, settings: Settings, steps: int, dtype=torch.float64) -> tuple[State, State, State]:
    """State before, after the plain steps, and after those of `mgmrn`."""
    reference = deepcopy(drawn_reference()).train(batch_norm == "train").to(dtype)
    before = {name: value.clone() for name, value in reference.named().items()}
    targets, images = torch.tensor([0, 3]), [draw(B, 3, SIDE, SIDE, seed=10 + step).to(dtype) for step in range(steps)]
    loss_of = partial(level_loss, targets=targets, class_attributes=CLASSES.to(dtype), settings=settings)
    step = {"sequential": sequential_step, "joint": joint_step}[order]
    with float64() if dtype is torch.float64 else nullcontext():
        trainer = make_ours(reference, small_config(order, batch_norm, settings))
        optimiser = make_optimiser(reference, settings)
        for batch in images:
            wanted = step(reference, optimiser, batch, loss_of)
            found = train_epoch(trainer, [Batch(batch, targets, np.arange(B))]).loss["total"]
            assert found == pytest.approx(wanted, rel=1e-9 if dtype is torch.float64 else 1e-5)
        return before, reference.named(), trainer.network.state_dict()


# Norms and biases are spared from weight decay, unlike in the released code; without decay all updates must be equal.
SETTINGS = Settings(lr=1e-2, weight_decay=0.0)


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_several_steps_change_every_weight_as_the_plain_ones_do(order: str) -> None:
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
    # At a rate of nearly nothing, since batch norms in train mode multiply the rounding of every update.
    before, plain, ours = run("sequential", "train", Settings(lr=1e-9), 1)
    for name in [name for name in before if "running" in name]:
        assert not torch.equal(ours[name], before[name]), name
        torch.testing.assert_close(ours[name], plain[name], **TOLERANCE)
    assert int(ours["backbone.bn1.num_batches_tracked"]) == 3


def changed_by_training(state: State) -> list[str]:
    """Names of the parameters in a state of weights, statistics and word vectors."""
    return [name for name in state if "running" not in name and not name.endswith(("tracked", "word_vectors"))]
