"""Costs of a network's parts, on layers whose costs can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.bench.parts import PartCost, bound_of, measure_parts, parts_of
from pipeline.bench.step_variants import StepSize, make_training

CPU = torch.device("cpu")


def test_operations_and_bytes_of_a_product() -> None:
    first, second = nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False)
    network = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(3, 8)
    with torch.no_grad():
        costs = measure_parts({"first": first, "second": second}, lambda: network(x), CPU, 2)
    assert costs["first"].operations == 2 * 3 * 8 * 4
    assert costs["second"].operations == 2 * 3 * 4 * 2
    assert costs["first"].bytes == 4 * (3 * 8 + 8 * 4 + 3 * 4), "input, weight and output, once"
    assert all(cost.seconds > 0 for cost in costs.values())


def test_hooks_are_gone_afterwards() -> None:
    layer = nn.Linear(2, 2)
    measure_parts({"layer": layer}, lambda: layer(torch.zeros(1, 2)), CPU, 1)
    assert not layer._forward_hooks and not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("operations", "moved", "seconds", "limit"),
    [(100, 10, 10.0, "arithmetic"), (100, 1000, 20.0, "memory")],
)
def test_the_bound_is_the_slower_of_the_two(operations: int, moved: int, seconds: float, limit: str) -> None:
    bound = bound_of(PartCost(1.0, operations, moved), peak=10.0, bandwidth=50.0)
    assert (bound.seconds, bound.limit) == (seconds, limit)


def test_the_parts_are_the_whole_network() -> None:
    trainer, _ = make_training("joint", StepSize(images=32, batch=2, width=32, backbone="resnet18"), CPU)
    parts = parts_of(trainer.network)
    assert next(iter(parts)) == "backbone" and "VSD c5" in parts and "regions and MgM c3" in parts
    whole = {id(p) for p in trainer.network.parameters()}
    assert {id(p) for part in parts.values() for p in part.parameters()} == whole
