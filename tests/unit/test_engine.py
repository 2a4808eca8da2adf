"""Training and evaluation loops on tiny networks."""

import copy

import numpy as np
import pytest
import torch

from mgmrn.config import (
    BenchmarkConfig,
    ExperimentConfig,
    LossConfig,
    OptimiserConfig,
    RefinementConfig,
    ScheduleConfig,
)
from mgmrn.engine import Batch, NonFiniteLossError, Trainer, build_optimiser, build_trainer, evaluate, train_epoch
from mgmrn.model.network import MgMRN
from tests.double import TOLERANCE, float64
from tests.tiny import small_network

CHANNELS = {"c4": 12, "c5": 16}
SEEN, ATTRIBUTES, STEPS = 5, 9, 4
CPU = torch.device("cpu")


def experiment(**parts) -> ExperimentConfig:
    model = small_network(levels=("c4", "c5"), width=16, refinement=parts.pop("refinement", RefinementConfig()))
    return ExperimentConfig(benchmark=BenchmarkConfig(name="TINY"), model=model, **parts)


def new_trainer(config: ExperimentConfig) -> Trainer:
    torch.manual_seed(0)
    network = MgMRN(config.model, CHANNELS, torch.randn(ATTRIBUTES, 6))
    torch.manual_seed(1)
    attributes = torch.rand(SEEN, ATTRIBUTES)
    return build_trainer(
        network, attributes, config, levels=("c4", "c5"), global_batch=6, steps_per_epoch=STEPS, device=CPU
    )


def batches(epoch: int = 0, count: int = STEPS, poison_step: int | None = None) -> list[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    made = []
    for step in range(count):
        maps = {
            "c4": torch.randn(6, CHANNELS["c4"], 6, 6, generator=generator),
            "c5": torch.randn(6, CHANNELS["c5"], 3, 3, generator=generator),
        }
        if step == poison_step:
            maps["c5"][2, 0, 0, 0] = float("nan")
        targets = torch.randint(SEEN, (6,), generator=generator)
        made.append(Batch(maps, targets, np.arange(100 * step, 100 * step + 6)))
    return made


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def largest_difference(first, second) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_the_loss_falls():
    trainer = new_trainer(experiment(schedule=ScheduleConfig(epochs=8)))
    losses = [train_epoch(trainer, batches()).loss["total"] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("learning_rate", ["constant", "step", "cosine", "one-cycle"])
def test_resumed_training_is_the_same_to_the_last_bit(optimiser, learning_rate):
    config = experiment(
        optimiser=OptimiserConfig(name=optimiser, clip_norm=1.0),
        schedule=ScheduleConfig(epochs=4, learning_rate=learning_rate, step_epochs=1),
    )
    straight = new_trainer(config)
    for epoch in range(4):
        train_epoch(straight, batches(epoch))
    first = new_trainer(config)
    for epoch in range(2):
        train_epoch(first, batches(epoch))
    state = copy.deepcopy(first.state_dict())
    resumed = new_trainer(config)
    resumed.load_state_dict(state)
    for epoch in range(resumed.epoch, 4):
        train_epoch(resumed, batches(epoch))
    assert resumed.epoch == 4
    assert largest_difference(weights(straight), weights(resumed)) == 0


@float64()
def test_accumulated_gradients_equal_those_of_the_whole_batch():
    # Plain SGD, so that the weights after one step differ as the gradients do.
    def after_one_step(parts: int):
        optimiser = OptimiserConfig(name="sgd", momentum=0.0, accumulate=parts)
        trainer = new_trainer(experiment(optimiser=optimiser, schedule=ScheduleConfig(learning_rate="constant")))
        train_epoch(trainer, batches(count=1))
        return weights(trainer)

    assert largest_difference(after_one_step(1), after_one_step(4)) < 1e-9


@float64()
def test_joint_gradient_is_the_sum_of_the_levels_gradients():
    trainer = new_trainer(experiment(refinement=RefinementConfig(topology="cascade", detach=True)))
    batch = batches(count=1)[0]

    def gradients(level):
        trainer.network.zero_grad()
        trainer.objective(batch.inputs, batch.targets, level)["total"].backward()
        return {n: p.grad.clone() for n, p in trainer.network.named_parameters() if p.grad is not None}

    joint, parts = gradients(None), [gradients(level) for level in ("c4", "c5")]
    for name, gradient in joint.items():
        summed = sum(part[name] for part in parts if name in part)
        torch.testing.assert_close(summed, gradient, **TOLERANCE)


def test_sequential_steps_once_per_level_and_batch():
    trainer = new_trainer(experiment(schedule=ScheduleConfig(order="sequential")))
    calls = []
    step = trainer.optimiser.step
    trainer.optimiser.step = lambda *a, **k: (calls.append(1), step(*a, **k))[1]
    stats = train_epoch(trainer, batches())
    assert len(calls) == 2 * STEPS and stats.steps == STEPS


@pytest.mark.parametrize("poisoned", [0, 2, STEPS - 1])
def test_a_loss_that_is_not_a_number_names_the_images_of_its_step(poisoned):
    trainer = new_trainer(experiment())
    with pytest.raises(NonFiniteLossError, match=f"step {poisoned}") as caught:
        train_epoch(trainer, batches(poison_step=poisoned))
    assert caught.value.ids == tuple(range(100 * poisoned, 100 * poisoned + 6))
    assert trainer.epoch == 0, "an epoch that failed is not complete"


def test_norms_and_biases_are_not_decayed():
    trainer = new_trainer(experiment(optimiser=OptimiserConfig(weight_decay=0.5)))
    decayed = {id(p) for group in trainer.optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in trainer.network.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in decayed) == (parameter.ndim >= 2), name


def test_backbone_and_head_have_their_own_rates():
    network = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimiser = build_optimiser(network, OptimiserConfig(head_lr=0.1, backbone_lr=0.01))
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates[id(network["backbone"].weight)] == 0.01 and rates[id(network["head"].bias)] == 0.1


def test_evaluation_does_not_depend_on_the_batch_size_and_changes_nothing():
    trainer = new_trainer(experiment())
    attributes = torch.rand(7, ATTRIBUTES)
    inputs = [batch.inputs for batch in batches()]
    halves = [{level: x[i : i + 3] for level, x in maps.items()} for maps in inputs for i in (0, 3)]
    before = weights(trainer)
    whole = evaluate(trainer.network, inputs, attributes, trainer.config, CPU)
    split = evaluate(trainer.network, halves, attributes, trainer.config, CPU)
    assert whole.shape == (6 * STEPS, 7) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, split, atol=1e-4)
    assert largest_difference(before, weights(trainer)) == 0


def test_scale_multiplies_the_scores():
    small, large = (new_trainer(experiment(loss=LossConfig(scale=scale))) for scale in (10.0, 20.0))
    attributes, inputs = torch.rand(7, ATTRIBUTES), [batches()[0].inputs]
    np.testing.assert_allclose(
        2 * evaluate(small.network, inputs, attributes, small.config, CPU),
        evaluate(large.network, inputs, attributes, large.config, CPU),
        rtol=1e-4,
    )
