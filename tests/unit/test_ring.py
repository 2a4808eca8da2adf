"""The model on paper of how gradients travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.ring import Link, Step, efficiency, exchange_seconds, ring_seconds

FREE = Link(bytes_per_second=1e9, latency_seconds=0.0)


def test_a_ring_moves_nearly_twice_the_buffer_through_each_link() -> None:
    assert ring_seconds(1e9, 1, FREE) == 0
    assert ring_seconds(1e9, 2, FREE) == pytest.approx(1.0)
    assert ring_seconds(1e9, 1000, FREE) == pytest.approx(2.0, rel=2e-3)


def test_every_message_has_its_latency() -> None:
    assert ring_seconds(0, 4, Link(1e9, 0.5)) == 3.0


def test_between_hosts_each_gpu_carries_its_piece() -> None:
    fast = Link(float("inf"), 0.0)
    assert exchange_seconds(8e9, 2, 8, fast, FREE) == pytest.approx(ring_seconds(1e9, 2, FREE))
    assert exchange_seconds(8e9, 1, 8, FREE, fast) == pytest.approx(ring_seconds(8e9, 8, FREE))


def test_an_exchange_within_the_backward_pass_costs_nothing() -> None:
    step = Step(forward_seconds=1.0, backward_seconds=2.0)
    assert efficiency(step, 2.0) == 1.0
    assert efficiency(step, 5.0) == 0.5


@given(st.integers(1, 64), st.floats(1e3, 1e12), st.floats(0, 1e-2))
def test_more_ranks_never_exchange_faster(ranks: int, size: float, latency: float) -> None:
    link = Link(1e9, latency)
    assert ring_seconds(size, ranks, link) <= ring_seconds(size, ranks + 1, link) * (1 + 1e-12)
