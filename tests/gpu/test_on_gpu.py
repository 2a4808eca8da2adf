"""A GPU trains the network that a CPU trains.

Several steps are compared in float64, since rounding in float32 grows with the steps.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from mgmrn.checkpoint import load_checkpoint, save_checkpoint
from mgmrn.engine import evaluate, train_epoch
from tests.double import float64
from tests.gpu.small import ATTRIBUTES, SEEN, TEN_TIMES_ROUNDING, batches, disagreement, experiment, new_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("changed", [{}, {"order": "sequential"}, {"accumulate": 2, "clip_norm": 1.0}], ids=str)
@float64()
def test_training_equals_that_on_a_cpu(changed: dict[str, object]) -> None:
    there, here = new_trainer(experiment(**changed), GPU), new_trainer(experiment(**changed), CPU)
    for epoch in range(2):
        found, wanted = (train_epoch(trainer, batches(epoch)).loss for trainer in (there, here))
        assert found == pytest.approx(wanted, rel=1e-9)
    assert disagreement(there, here) < 1e-7


def test_scores_and_a_step_in_float32_equal_those_on_a_cpu() -> None:
    config, maps = experiment(learning_rate="constant"), [batch.inputs for batch in batches(0)]
    there, here = (new_trainer(config, device) for device in (GPU, CPU))
    attributes = torch.rand(SEEN + 2, ATTRIBUTES)
    scores = [evaluate(one.network, maps, attributes, config, one.device)[None] for one in (there, here)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    found, wanted = (train_epoch(trainer, batches(0, count=1)).loss for trainer in (there, here))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert disagreement(there, here) < TEN_TIMES_ROUNDING


def test_half_precision_learns_and_keeps_weights_in_float32() -> None:
    trainer = new_trainer(experiment(precision="auto"), GPU)
    losses = [train_epoch(trainer, batches(0)).loss["total"] for _ in range(4)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_a_rank_of_nccl_trains_the_same() -> None:
    rank, alone = (new_trainer(experiment(), GPU) for _ in range(2))
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        rank.objective = DistributedDataParallel(rank.objective, device_ids=[0], broadcast_buffers=False)
        found, wanted = (train_epoch(trainer, batches(0)).loss for trainer in (rank, alone))
    finally:
        torch.distributed.destroy_process_group()
    assert found == pytest.approx(wanted, rel=1e-3)
    assert disagreement(rank, alone) < TEN_TIMES_ROUNDING


@float64()
def test_a_checkpoint_of_a_gpu_resumes_there_and_on_a_cpu(tmp_path: Path) -> None:
    straight = new_trainer(experiment(), GPU)
    train_epoch(straight, batches(0))
    save_checkpoint(tmp_path, straight.state_dict(), "identity")
    train_epoch(straight, batches(1))
    for device in (GPU, CPU):
        resumed = new_trainer(experiment(), device)
        resumed.load_state_dict(load_checkpoint(tmp_path, "identity"))
        train_epoch(resumed, batches(1))
        assert resumed.epoch == 2 and disagreement(resumed, straight) < 1e-7
