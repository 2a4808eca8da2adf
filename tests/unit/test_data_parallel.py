"""A global batch gives the same gradients on one process and on three, whose shares differ in size."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgmrn.config import (
    AttributeNetworkConfig,
    BenchmarkConfig,
    ExperimentConfig,
    LossConfig,
    OptimiserConfig,
    RefinementConfig,
    ScheduleConfig,
)
from mgmrn.data.episodes import eval_shard
from mgmrn.engine import Batch, build_trainer, train_epoch
from mgmrn.errors import UserError
from mgmrn.model.network import build_head, levels_of
from tests.double import TOLERANCE, float64
from tests.tiny import small_network

CHANNELS, SIDES = {"c3": 8, "c4": 12, "c5": 16}, {"c3": 8, "c4": 4, "c5": 2}
GLOBAL_BATCH, STEPS, SEEN, ATTRIBUTES = 7, 2, 5, 9
WORLD_SIZE = 3
REGULARISED = LossConfig(occupancy=0.3, decorrelation=0.5, label_smoothing=0.1)
THREE = ("c3", "c4", "c5")
ADJACENT = RefinementConfig(channel_reduction=4)
CASCADE = RefinementConfig(topology="cascade", channel_reduction=4)
MUTUAL = RefinementConfig(channel_reduction=4, detach=False)
EXCHANGE = RefinementConfig(topology="regions", detach=False)


def experiment(
    levels=("c3", "c4"), refinement=ADJACENT, *, model=None, loss=REGULARISED, order="joint", accumulate=1, **network
) -> ExperimentConfig:
    return ExperimentConfig(
        benchmark=BenchmarkConfig(name="TINY"),
        model=model or small_network(levels=levels, refinement=refinement, **network),
        loss=loss,
        # The weights after a step of plain SGD are its gradient; momentum and decay would blur it.
        optimiser=OptimiserConfig(name="sgd", head_lr=0.05, momentum=0.0, weight_decay=0.0, accumulate=accumulate),
        schedule=ScheduleConfig(epochs=1, order=order, learning_rate="constant"),
    )


PLAIN, RELEASED = LossConfig(decorrelation=0.5), LossConfig(regression_reduction="mean")
CASES = {
    "levels of different weight": experiment(loss=REGULARISED.model_copy(update={"level_weights": {"c3": 0.25}})),
    "sequential, three levels, mutual": experiment(THREE, MUTUAL, order="sequential"),
    "cascade": experiment(THREE, CASCADE),
    "tokens, learned temperature": experiment(regions="tokens", temperature="learned"),
    "as released": experiment(THREE, CASCADE, regions="released", loss=RELEASED, order="sequential"),
    "no regions, one level": experiment(("c4",), RefinementConfig(topology="none"), regions="none"),
    "accumulated": experiment(loss=PLAIN, accumulate=2),
    "accumulated, sequential": experiment(loss=PLAIN, order="sequential", accumulate=2),
    "agreement, exchanged regions": experiment(
        THREE, EXCHANGE, loss=LossConfig(agreement=2.0, agreement_teacher="reliable"), accumulate=2
    ),
    "attribute network": experiment(model=AttributeNetworkConfig(level="c4"), loss=LossConfig()),
}


def new_head(config: ExperimentConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_head(config.model, CHANNELS, torch.randn(ATTRIBUTES, 6))


class NormedNetwork(nn.Module):
    """A batch norm on the maps, as a backbone that is trained with its batch norms has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS["c4"])
        self.head = new_head(CASES["attribute network"])

    def forward(self, maps):
        return self.head({"c4": self.norm(maps["c4"])})


def global_batches(levels) -> list[Batch]:
    torch.manual_seed(1)
    made = []
    for step in range(STEPS):
        maps = {level: torch.randn(GLOBAL_BATCH, CHANNELS[level], SIDES[level], SIDES[level]) for level in levels}
        targets = torch.randint(SEEN, (GLOBAL_BATCH,))
        made.append(Batch(maps, targets, np.arange(GLOBAL_BATCH) + GLOBAL_BATCH * step))
    return made


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    rows = eval_shard(GLOBAL_BATCH, rank, world_size)
    return Batch({level: maps[rows] for level, maps in batch.inputs.items()}, batch.targets[rows], batch.ids[rows])


def train_share(network: nn.Module, config: ExperimentConfig, rank: int, world_size: int, steps: int = STEPS) -> None:
    batches = global_batches(levels_of(config.model))[:steps]
    sizes = {"global_batch": GLOBAL_BATCH, "steps_per_epoch": STEPS, "world_size": world_size}
    trainer = build_trainer(network, torch.rand(SEEN, ATTRIBUTES), config, device=torch.device("cpu"), **sizes)
    train_epoch(trainer, [share_of(batch, rank, world_size) for batch in batches])


@float64()
def trained_share(config: ExperimentConfig, rank: int, world_size: int) -> dict[str, Tensor]:
    """Gradients of the last step, and the weights after all."""
    network = new_head(config)
    train_share(network, config, rank, world_size)
    named = list(network.named_parameters())
    gradients = {f"gradient {name}": p.grad.clone() for name, p in named if p.grad is not None}
    return gradients | {f"weight {name}": p.detach().clone() for name, p in named}


@float64()
def trained_statistics(rank: int, world_size: int) -> dict[str, Tensor]:
    network = NormedNetwork()
    train_share(network, CASES["attribute network"], rank, world_size, steps=1)
    return dict(network.norm.named_buffers())


def train_all_cases(rank: int, folder: str) -> None:
    """One rank of the world; runs in a process of its own."""
    torch.set_num_threads(1)
    store, patience = f"file://{folder}/store", timedelta(seconds=180)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE, timeout=patience)
    try:
        results = {name: trained_share(config, rank, WORLD_SIZE) for name, config in CASES.items()}
        results["statistics"] = trained_statistics(rank, WORLD_SIZE)
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    # The server imports torch once and forks before any thread exists; this process has threads already.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [
        context.Process(target=train_all_cases, args=(rank, str(folder)), daemon=True) for rank in range(WORLD_SIZE)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=240)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


@pytest.mark.ray
@pytest.mark.parametrize("name", CASES)
def test_gradients_do_not_depend_on_the_number_of_workers_and_micro_batches(ranks, name):
    optimiser = CASES[name].optimiser.model_copy(update={"accumulate": 1})
    alone = trained_share(CASES[name].model_copy(update={"optimiser": optimiser}), 0, 1)
    gradients = [float(value.abs().max()) for key, value in alone.items() if key.startswith("gradient")]
    assert max(gradients) > 1e-2, "gradients are far above the tolerance"
    for shared in (results[name] for results in ranks):
        assert shared.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(shared[key], expected, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.ray
@float64()
def test_all_workers_end_an_epoch_with_the_mean_of_their_batch_norm_statistics(ranks):
    batch = global_batches(("c4",))[0]
    shares = [share_of(batch, rank, WORLD_SIZE).inputs["c4"] for rank in range(WORLD_SIZE)]
    mean = torch.stack([0.1 * share.mean(dim=(0, 2, 3)) for share in shares]).mean(dim=0)
    variance = torch.stack([0.9 + 0.1 * share.var(dim=(0, 2, 3)) for share in shares]).mean(dim=0)
    for statistics in (results["statistics"] for results in ranks):
        torch.testing.assert_close(statistics["running_mean"], mean, **TOLERANCE)
        torch.testing.assert_close(statistics["running_var"], variance, **TOLERANCE)
        assert torch.equal(statistics["running_mean"], ranks[0]["statistics"]["running_mean"])


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 8), (2, 4), (3, 3), (8, 1)])
def test_every_worker_needs_an_image_for_every_micro_batch(world_size, accumulate):
    with pytest.raises(UserError, match="micro-batches"):
        trained_share(experiment(accumulate=accumulate), 0, world_size)
