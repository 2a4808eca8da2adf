"""Heads on cached maps: recorded as CUDA graphs, and on maps that lie on the GPU."""

import copy
from pathlib import Path

import pytest
import torch

from mgmrn.config import ExperimentConfig
from mgmrn.data import resident_maps
from mgmrn.data.splits import load_tune
from mgmrn.engine import train_epoch
from mgmrn.feed import Feed, Share
from tests.double import float64
from tests.gpu.small import TEN_TIMES_ROUNDING, disagreement, experiment, map_batches, new_trainer, on_maps
from tests.tiny import write_benchmark

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")


@pytest.mark.parametrize("changed", [{}, {"order": "sequential"}, {"accumulate": 2, "clip_norm": 1.0}], ids=str)
@float64()
def test_graphs_train_as_plain_passes_do(changed: dict[str, object]) -> None:
    graphs = new_trainer(on_maps(experiment(**changed), compile="graphs"), GPU)
    plain = new_trainer(on_maps(experiment(**changed)), GPU)
    for epoch in range(3):
        if epoch == 2:  # As after a resume: the graphs read the weights where they are.
            graphs.load_state_dict(copy.deepcopy(graphs.state_dict()))
        found, wanted = (train_epoch(trainer, map_batches(epoch)).loss for trainer in (graphs, plain))
        assert found == pytest.approx(wanted, rel=1e-9)
    assert len(graphs.recordings) == (3 if "order" in changed else 1)
    assert disagreement(graphs, plain) < 1e-7


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_graphs_round_as_plain_passes_do(precision: str) -> None:
    graphs, plain = (new_trainer(on_maps(experiment(precision=precision), compile=c), GPU) for c in ("graphs", False))
    for epoch in range(3):
        found, wanted = (train_epoch(trainer, map_batches(epoch)).loss for trainer in (graphs, plain))
        assert found == pytest.approx(wanted, rel=1e-3 if precision == "float32" else 2e-2)
    if precision == "float32":
        assert disagreement(graphs, plain) < TEN_TIMES_ROUNDING


@pytest.mark.parametrize(("epochs", "recorded"), [(10**3, True), (1, False)])
def test_a_training_that_is_long_enough_is_recorded_by_itself(epochs: int, recorded: bool) -> None:
    trainer = new_trainer(on_maps(experiment(), compile="auto", epochs=epochs), GPU)
    assert (trainer.recordings is not None) == recorded


@pytest.fixture
def feed_config() -> ExperimentConfig:
    fields = {
        "benchmark": {"name": "TINY", "images": {"size": 32}},
        "model": {"kind": "mgmrn", "backbone": {"name": "resnet18", "weights": "none"}, "width": 32},
        "sampling": {"kind": "plain", "batch": 5},
        "cache_features": True,
        "mirror_scores": True,
    }
    return ExperimentConfig.model_validate(fields)


def test_maps_on_the_gpu_are_those_of_the_host_and_a_step_copies_none(
    feed_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_tune(write_benchmark(tmp_path, size=80), feed_config.benchmark)
    resident = Feed(feed_config, data, tmp_path / "cache", Share(), GPU)
    assert resident.told.endswith("of maps are on the GPU")
    monkeypatch.setattr(resident_maps, "free_bytes", lambda device: 0)
    monkeypatch.setattr(resident_maps, "_loaded", {})
    host = Feed(feed_config, data, tmp_path / "cache", Share(), GPU)
    assert host.told == ""
    for epoch in range(2):
        batches = resident.train_batches(epoch)
        found = [next(batches)]  # Indices of the epoch are copied with the first one.
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += [batch.to(GPU) for batch in batches]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, wanted in zip(found, host.train_batches(epoch), strict=True):
            assert all(map(torch.equal, one.to(GPU).tensors, wanted.to(GPU).tensors))
    for view in (False, True):
        for one, wanted in zip(resident.evaluation_inputs(view), host.evaluation_inputs(view), strict=True):
            assert all(torch.equal(one[level].cpu(), wanted[level]) for level in wanted)


def test_the_part_of_a_gpu_bounds_what_maps_may_take() -> None:
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(0.125)
    try:
        assert 0 < resident_maps.free_bytes(GPU) <= total / 8
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
