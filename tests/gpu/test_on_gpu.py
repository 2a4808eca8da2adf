"""A GPU trains what a CPU trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgmrn.checkpoint import load_checkpoint, save_checkpoint
from mgmrn.engine import evaluate, train_epoch
from tests.gpu.small import ATTRIBUTES, SEEN, batches, disagreement, experiment, new_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("changed", [{}, {"order": "sequential"}, {"accumulate": 2, "clip_norm": 1.0}], ids=str)
def test_training_equals_that_on_a_cpu(changed: dict[str, object]) -> None:
    there, here = new_trainer(experiment(**changed), GPU), new_trainer(experiment(**changed), CPU)
    for epoch in range(2):
        assert train_epoch(there, batches(epoch)).loss == pytest.approx(
            train_epoch(here, batches(epoch)).loss, rel=1e-3
        )
    assert disagreement(there, here) < 1e-2


def test_scores_equal_those_on_a_cpu() -> None:
    config, classes = experiment(), torch.rand(SEEN + 2, ATTRIBUTES)
    inputs = [batch.inputs for batch in batches(0)]
    scores = {
        device.type: evaluate(new_trainer(config, device).network, inputs, classes, config, device)
        for device in (CPU, GPU)
    }
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=1e-3)


def test_half_precision_learns_and_keeps_weights_in_float32() -> None:
    trainer = new_trainer(experiment(precision="auto"), GPU)
    losses = [train_epoch(trainer, batches(0)).loss["total"] for _ in range(6)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_a_checkpoint_of_a_gpu_goes_on_there_and_on_a_cpu(tmp_path: Path) -> None:
    straight = new_trainer(experiment(), GPU)
    train_epoch(straight, batches(0))
    save_checkpoint(tmp_path, straight.state_dict(), "identity")
    train_epoch(straight, batches(1))
    for device in (GPU, CPU):
        resumed = new_trainer(experiment(), device)
        resumed.load_state_dict(load_checkpoint(tmp_path, "identity"))
        train_epoch(resumed, batches(1))
        assert resumed.epoch == 2 and disagreement(resumed, straight) < 1e-2
