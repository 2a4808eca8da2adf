"""A global batch gives the same gradients on one process and cut over two or three, whose shares differ in size."""

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
CPU = torch.device("cpu")
REGULARISED = LossConfig(occupancy=0.3, decorrelation=0.5, label_smoothing=0.1)


def experiment(
    levels=("c3", "c4"),
    regions="regions",
    refinement=RefinementConfig(channel_reduction=4),
    temperature="none",
    loss=REGULARISED,
    order="joint",
    accumulate=1,
) -> ExperimentConfig:
    model = small_network(levels=levels, regions=regions, refinement=refinement, temperature=temperature)
    return trained(model, loss, order, accumulate)


def trained(model, loss=REGULARISED, order="joint", accumulate=1) -> ExperimentConfig:
    return ExperimentConfig(
        benchmark=BenchmarkConfig(name="TINY"),
        model=model,
        loss=loss,
        # The weights after a step of plain SGD are its gradient; momentum and decay would blur it.
        optimiser=OptimiserConfig(name="sgd", head_lr=0.05, momentum=0.0, weight_decay=0.0, accumulate=accumulate),
        schedule=ScheduleConfig(epochs=1, order=order, learning_rate="constant"),
    )


CASES = {
    "regularised": experiment(),
    "regularised, levels of different weight": experiment(
        loss=REGULARISED.model_copy(update={"level_weights": {"c3": 0.25}})
    ),
    "mutual": experiment(refinement=RefinementConfig(channel_reduction=4, detach=False)),
    "sequential": experiment(order="sequential"),
    "sequential, three levels, mutual": experiment(
        levels=("c3", "c4", "c5"), order="sequential", refinement=RefinementConfig(channel_reduction=4, detach=False)
    ),
    "cascade": experiment(
        levels=("c3", "c4", "c5"), refinement=RefinementConfig(topology="cascade", channel_reduction=4)
    ),
    "sequential cascade": experiment(
        order="sequential", refinement=RefinementConfig(topology="cascade", channel_reduction=4)
    ),
    "tokens, learned temperature": experiment(regions="tokens", temperature="learned"),
    "tokens, no refinement": experiment(regions="tokens", refinement=RefinementConfig(topology="none")),
    "as released": experiment(
        levels=("c3", "c4", "c5"),
        regions="released",
        refinement=RefinementConfig(topology="cascade", channel_reduction=4),
        loss=LossConfig(regression_reduction="mean"),
        order="sequential",
    ),
    "no regions, one level": experiment(levels=("c4",), regions="none", refinement=RefinementConfig(topology="none")),
    "accumulated": experiment(loss=LossConfig(decorrelation=0.5), accumulate=2),
    "accumulated, sequential": experiment(loss=LossConfig(decorrelation=0.5), order="sequential", accumulate=2),
    "attribute network": trained(AttributeNetworkConfig(level="c4"), LossConfig()),
}


def new_head(config: ExperimentConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_head(config.model, CHANNELS, torch.randn(ATTRIBUTES, 6))


def global_batches(levels) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for step in range(STEPS):
        maps = {
            level: torch.randn(GLOBAL_BATCH, CHANNELS[level], SIDES[level], SIDES[level], generator=generator)
            for level in levels
        }
        targets = torch.randint(SEEN, (GLOBAL_BATCH,), generator=generator)
        made.append(Batch(maps, targets, np.arange(GLOBAL_BATCH) + GLOBAL_BATCH * step))
    return made


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    rows = eval_shard(GLOBAL_BATCH, rank, world_size)
    return Batch({level: maps[rows] for level, maps in batch.inputs.items()}, batch.targets[rows], batch.ids[rows])


@float64()
def trained_share(config: ExperimentConfig, rank: int, world_size: int) -> dict[str, Tensor]:
    """Gradients of the last step, and the weights after all."""
    network, levels = new_head(config), levels_of(config.model)
    torch.manual_seed(2)
    trainer = build_trainer(
        network,
        torch.rand(SEEN, ATTRIBUTES),
        config,
        levels=levels,
        global_batch=GLOBAL_BATCH,
        steps_per_epoch=STEPS,
        device=CPU,
        world_size=world_size,
    )
    train_epoch(trainer, [share_of(batch, rank, world_size) for batch in global_batches(levels)])
    named = list(network.named_parameters())
    gradients = {f"gradient {name}": p.grad.clone() for name, p in named if p.grad is not None}
    return gradients | {f"weight {name}": p.detach().clone() for name, p in named}


class NormedNetwork(nn.Module):
    """A batch norm on the maps, as a backbone that is trained with its batch norms has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS["c4"])
        self.head = new_head(CASES["attribute network"])

    def forward(self, maps):
        return self.head({"c4": self.norm(maps["c4"])})


@float64()
def trained_statistics(rank: int, world_size: int) -> dict[str, Tensor]:
    """Running statistics after one step."""
    network = NormedNetwork()
    trainer = build_trainer(
        network,
        torch.rand(SEEN, ATTRIBUTES),
        CASES["attribute network"],
        levels=("c4",),
        global_batch=GLOBAL_BATCH,
        steps_per_epoch=1,
        device=CPU,
        world_size=world_size,
    )
    train_epoch(trainer, [share_of(global_batches(("c4",))[0], rank, world_size)])
    return dict(network.norm.named_buffers())


def train_all_cases(rank: int, world_size: int, folder: str) -> None:
    """One rank of a world; runs in a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{world_size}.store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=180),
    )
    try:
        results = {name: trained_share(config, rank, world_size) for name, config in CASES.items()}
        results["statistics"] = trained_statistics(rank, world_size)
        torch.save(results, Path(folder) / f"{world_size}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[tuple[int, int], dict[str, dict[str, Tensor]]]:
    """Results of each rank of worlds of two and of three, which run side by side."""
    folder = tmp_path_factory.mktemp("worlds")
    # The server imports torch once and forks before any thread exists; this process has threads already.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mgmrn.engine", "mgmrn.model.network"])
    processes = []
    for world_size in (2, 3):
        for rank in range(world_size):
            arguments = (rank, world_size, str(folder))
            processes.append(context.Process(target=train_all_cases, args=arguments, daemon=True))
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=240)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
    return {(w, r): torch.load(folder / f"{w}-{r}.pt", weights_only=True) for w in (2, 3) for r in range(w)}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_gradients_do_not_depend_on_the_number_of_workers(worlds, name, world_size):
    alone = trained_share(CASES[name], 0, 1)
    for rank in range(world_size):
        shared = worlds[world_size, rank][name]
        assert shared.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(shared[key], expected, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("world_size", [2, 3])
@float64()
def test_all_workers_end_an_epoch_with_the_mean_of_their_batch_norm_statistics(worlds, world_size):
    batch = global_batches(("c4",))[0]
    shares = [share_of(batch, rank, world_size).inputs["c4"] for rank in range(world_size)]
    mean = torch.stack([0.1 * share.mean(dim=(0, 2, 3)) for share in shares]).mean(dim=0)
    variance = torch.stack([0.9 + 0.1 * share.var(dim=(0, 2, 3)) for share in shares]).mean(dim=0)
    for rank in range(world_size):
        statistics = worlds[world_size, rank]["statistics"]
        torch.testing.assert_close(statistics["running_mean"], mean, **TOLERANCE)
        torch.testing.assert_close(statistics["running_var"], variance, **TOLERANCE)
        assert torch.equal(statistics["running_mean"], worlds[world_size, 0]["statistics"]["running_mean"])


@pytest.mark.parametrize("name", CASES)
@float64()
def test_every_case_trains(name):
    config = CASES[name]
    before = new_head(config).state_dict()
    after = trained_share(config, 0, 1)
    assert any(
        not torch.equal(before[key.removeprefix("weight ")], after[key]) for key in after if "weight " in key[:7]
    )
    largest = max(float(value.abs().max()) for key, value in after.items() if key.startswith("gradient"))
    assert largest > 1e-2, "a gradient this small would be equal within the tolerance whatever it is"


@pytest.mark.parametrize("world_size, accumulate", [(1, 8), (2, 4), (3, 3), (8, 1)])
def test_every_worker_needs_an_image_for_every_micro_batch(world_size, accumulate):
    with pytest.raises(UserError, match="micro-batches"):
        trained_share(experiment(accumulate=accumulate), 0, world_size)
