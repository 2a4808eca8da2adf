"""Benchmarks that start Ray: what they report, at sizes at which they say nothing about speed."""

from __future__ import annotations

import os

import pytest

from tests.ray.command import Place
from tests.ray.small import write_small

pytestmark = pytest.mark.ray


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two CPUs")
def test_scaling_is_throughput_per_worker_against_one_alone(place: Place) -> None:
    answer = place.run("bench", "scaling", *write_small(place.folder), "--batches", "2", "--repeats", "1", "--json")
    assert answer.code == 0, answer.err
    by_name = {one["name"]: one["median"] for one in answer.json["results"]}
    efficiency = by_name["2 workers: efficiency"]
    assert efficiency == pytest.approx(by_name["2 workers: images"] / by_name["1 workers: images"] / 2)
    assert answer.json["ratios"] == {"2 workers: efficiency": efficiency}
    assert by_name["2 workers: sum of the gradients"] > 0
    assert not list(place.folder.glob(".mgmrn/runs/bench-*")), "nothing is left behind"


def test_overhead_is_an_epoch_against_the_plain_loop_and_every_phase_of_the_start(place: Place) -> None:
    arguments = ("--set", "schedule.epochs=3", "--repeats", "1", "--json")
    answer = place.run("bench", "overhead", *write_small(place.folder), *arguments)
    assert answer.code == 0, answer.err
    by_name = {one["name"]: one["median"] for one in answer.json["results"]}
    assert by_name["pipeline / plain loop, seconds an epoch"] == pytest.approx(
        by_name["pipeline: epoch"] / by_name["plain loop: epoch"]
    )
    phases = [value for name, value in by_name.items() if name.startswith("start-up, ")]
    assert len(phases) == 7 and min(phases) >= 0
    assert sum(phases) == pytest.approx(by_name["start-up"])
    assert by_name["a cached answer of `train`"] < by_name["start-up"], "nothing was run for it"
    assert not (place.folder / ".mgmrn" / "mlflow.db").exists(), "what is measured is not tracked among the user's runs"
