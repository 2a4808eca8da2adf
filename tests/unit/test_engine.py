"""Training and evaluation of small heads on drawn maps."""

import copy

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgmrn import engine
from mgmrn.config import (
    BenchmarkConfig,
    ExperimentConfig,
    LossConfig,
    OptimiserConfig,
    RefinementConfig,
    ScheduleConfig,
)
from mgmrn.engine import Batch, Trainer, build_trainer, evaluate, train_epoch
from mgmrn.model.network import MgMRN
from tests.tiny import small_network

CHANNELS, SIDES = {"c4": 12, "c5": 16}, {"c4": 6, "c5": 3}
SEEN, ATTRIBUTES, STEPS = 5, 9, 4
CPU = torch.device("cpu")


def experiment(**parts) -> ExperimentConfig:
    model = small_network(levels=("c4", "c5"), width=16)
    return ExperimentConfig(benchmark=BenchmarkConfig(name="TINY"), model=model, **parts)


def new_trainer(config: ExperimentConfig) -> Trainer:
    torch.manual_seed(0)
    network = MgMRN(config.model, CHANNELS, torch.randn(ATTRIBUTES, 6))
    attributes = torch.rand(SEEN, ATTRIBUTES)
    return build_trainer(network, attributes, config, global_batch=6, steps_per_epoch=STEPS, device=CPU)


def batches(epoch: int = 0, poison_step: int | None = None) -> list[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    made = []
    for step in range(STEPS):
        maps = {n: torch.randn(6, c, SIDES[n], SIDES[n], generator=generator) for n, c in CHANNELS.items()}
        if step == poison_step:
            maps["c5"][2, 0, 0, 0] = float("nan")
        targets = torch.randint(SEEN, (6,), generator=generator)
        made.append(Batch(maps, targets, np.arange(100 * step, 100 * step + 6)))
    return made


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.network.state_dict().values()])


@pytest.mark.parametrize(
    ("optimiser", "learning_rate"),
    [("sgd", "constant"), ("adamw", "step"), ("sgd", "cosine"), ("adamw", "cosine"), ("adamw", "one-cycle")],
)
def test_resumed_training_is_the_same_to_the_last_bit(optimiser, learning_rate):
    schedule = ScheduleConfig(epochs=3, learning_rate=learning_rate, step_epochs=1)
    config = experiment(optimiser=OptimiserConfig(name=optimiser, clip_norm=1.0), schedule=schedule)
    straight, resumed = new_trainer(config), new_trainer(config)
    for epoch in range(3):
        if epoch == 2:
            resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
        train_epoch(straight, batches(epoch))
    assert resumed.epoch == 2
    train_epoch(resumed, batches(2))
    assert resumed.epoch == 3
    assert torch.equal(weights(straight), weights(resumed))


def recorded_on_a_cpu(work):
    """As `record_graph`: what is computed later stands where the first result stood."""
    terms, gradients = work()

    def replay():
        again, new = work()
        for old, one in zip([terms, *gradients], [again, *new], strict=True):
            assert (old is None) == (one is None), "a graph computes the same gradients each time"
            if old is not None:
                old.copy_(one)

    return (terms, gradients), replay


@pytest.mark.parametrize(
    ("order", "agreement", "accumulate", "optimiser", "recordings"),
    [("joint", 1.0, 1, "adamw", 1), ("joint", 0.0, 4, "sgd", 1), ("sequential", 0.0, 2, "adamw", 2)],
)
def test_recorded_passes_train_as_plain_ones_to_the_last_bit(
    order, agreement, accumulate, optimiser, recordings, monkeypatch
):
    """But for the graph itself, which needs a GPU (tests/gpu)."""
    monkeypatch.setattr(engine, "record_graph", recorded_on_a_cpu)
    config = experiment(
        loss=LossConfig(agreement=agreement, occupancy=0.1),
        optimiser=OptimiserConfig(name=optimiser, accumulate=accumulate, clip_norm=0.5),
        schedule=ScheduleConfig(epochs=4, order=order),
    )
    plain, recorded = new_trainer(config), new_trainer(config)
    recorded.recordings = {}
    for epoch in range(2):
        losses = [train_epoch(one, batches(epoch)).loss for one in (plain, recorded)]
        assert losses[0] == losses[1]
        assert torch.equal(weights(plain), weights(recorded))
    assert len(recorded.recordings) == recordings
    # Batches of another size get a recording of their own.
    short = [next(batch.split(3)) for batch in batches(2)]
    assert train_epoch(plain, short).loss == train_epoch(recorded, short).loss
    assert torch.equal(weights(plain), weights(recorded)) and len(recorded.recordings) == 2 * recordings
    with pytest.raises(engine.NonFiniteLossError, match="step 2"):
        train_epoch(recorded, batches(poison_step=2))


class NoHost(TorchDispatchMode):
    """Refuses operations on tensors of the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        devices = {one.device.type for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)}
        assert devices <= {"cuda"}, f"{operation} has tensors on {devices}"
        return made


@pytest.mark.parametrize("mode", ["none", "released", "regions", "tokens"])
@pytest.mark.parametrize("topology", ["none", "cascade", "adjacent", "regions"])
def test_a_pass_needs_nothing_from_the_host(mode, topology):
    """A CUDA graph can record neither a copy from the host nor a wait for a value. The GPU's tensors have no content here."""
    if topology == "regions" and mode not in ("regions", "tokens"):
        return
    parts = {"regions": mode, "refinement": RefinementConfig(topology=topology), "temperature": "learned"}
    model = small_network(levels=("c4", "c5"), width=16, **parts)
    loss = LossConfig(agreement=1, agreement_teacher="reliable", occupancy=1, decorrelation=1, label_smoothing=0.1)
    with FakeTensorMode(), torch.device("cuda"):
        network = MgMRN(model, CHANNELS, torch.rand(ATTRIBUTES, 6))
        objective = engine.TrainingObjective(network, torch.rand(SEEN, ATTRIBUTES), loss, 6, 1)
        maps = {level: torch.rand(6, channels, SIDES[level], SIDES[level]) for level, channels in CHANNELS.items()}
        targets = torch.zeros(6, dtype=torch.long)
        with NoHost():
            assert torch.stack(objective(maps, targets, None)).shape == (6,)
            objective(maps, targets, "c4")


@pytest.mark.parametrize("poisoned", [0, 2, STEPS - 1])
def test_a_loss_that_is_not_a_number_names_the_images_of_its_step(poisoned):
    trainer = new_trainer(experiment())
    with pytest.raises(engine.NonFiniteLossError, match=f"step {poisoned}") as caught:
        train_epoch(trainer, batches(poison_step=poisoned))
    assert caught.value.ids == tuple(range(100 * poisoned, 100 * poisoned + 6))
    assert trainer.epoch == 0, "a failed epoch is not complete"


def test_parameter_groups_decay_matrices_alone_and_have_their_own_rates():
    trainer = new_trainer(experiment(optimiser=OptimiserConfig(weight_decay=0.5)))
    decayed = {id(p) for group in trainer.optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in trainer.network.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in decayed) == (parameter.ndim >= 2), name
    network = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimiser = engine.build_optimiser(network, OptimiserConfig(head_lr=0.1, backbone_lr=0.01))
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates[id(network["backbone"].weight)] == 0.01 and rates[id(network["head"].bias)] == 0.1


def test_evaluation_scales_scores_and_does_not_depend_on_the_batch_size():
    trainer = new_trainer(experiment())
    attributes = torch.rand(7, ATTRIBUTES)
    inputs = [batch.inputs for batch in batches()]
    halves = [{level: x[i : i + 3] for level, x in maps.items()} for maps in inputs for i in (0, 3)]
    before = weights(trainer)
    levels = trainer.config.model.levels
    whole = evaluate(trainer.network, inputs, attributes, trainer.config, CPU)
    assert list(whole) == [None, *levels] and len(levels) > 1
    split = evaluate(trainer.network, halves, attributes, trainer.config, CPU)
    doubled = evaluate(trainer.network, inputs, attributes, experiment(loss=LossConfig(scale=40.0)), CPU)
    for key, scores in whole.items():
        assert scores.shape == (6 * STEPS, 7) and scores.dtype == np.float32
        np.testing.assert_allclose(scores, split[key], atol=1e-4)
        np.testing.assert_allclose(2 * scores, doubled[key], rtol=1e-4)
    np.testing.assert_allclose(whole[None], sum(whole[level] for level in levels), atol=1e-4)
    nothing = evaluate(trainer.network, [], attributes, trainer.config, CPU)
    assert {key: scores.shape for key, scores in nothing.items()} == dict.fromkeys(whole, (0, 7))
    assert torch.equal(before, weights(trainer))


@pytest.mark.parametrize(("steps", "fraction"), [(9, 0.1), (1, 0.5), (4, 0.2), (3, 1e-300)])
def test_a_rise_of_a_single_step_is_a_schedule(steps: int, fraction: float) -> None:
    """Torch divides by the length of the rise less one step."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = engine.build_scheduler(optimiser, ScheduleConfig(epochs=1, warmup_fraction=fraction), steps)
    for _ in range(steps):
        optimiser.step()
        schedule.step()
    assert schedule.get_last_lr()[0] < 0.1
