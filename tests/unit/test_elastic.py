"""A range of workers: how it is written, what it may be, what it gets of a cluster, and that it changes nothing of what a run is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmrn.config import EpisodicSampling, PlainSampling
from mgmrn.data.splits import load_tune
from mgmrn.errors import ResourceError, UserError
from pipeline.config.compose import load_experiment
from pipeline.spool import Spool
from pipeline.train.cell import make_cell
from pipeline.train.placement import Host, Placement, Workers, parse_workers, place, place_elastic
from tests.ray.small import write_small

TWO_HOSTS = (Host(cpus=4, gpus=0), Host(cpus=2, gpus=0))


@pytest.mark.parametrize(
    ("text", "workers"), [("2", Workers(2, 2)), ("1..4", Workers(1, 4)), (" 3..3 ", Workers(3, 3))]
)
def test_a_number_or_a_range(text: str, workers: Workers) -> None:
    assert parse_workers(text) == workers
    assert parse_workers(str(workers)) == workers


@pytest.mark.parametrize("text", ["", "two", "-1", "1..", "..4", "1-4", "1...4", "1.5", "0x2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be a number or a range, got .* \[--workers\] \(like 2 or 1\.\.4\)"):
        parse_workers(text)


@pytest.mark.parametrize("text", ["0", "0..2", "4..1"])
def test_a_range_that_holds_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="at least 1 and rise"):
        parse_workers(text)


def test_the_least_must_fit_and_the_rest_may_come_later() -> None:
    """The CPUs are shared by as many workers as fit now."""
    assert place_elastic(TWO_HOSTS, Workers(1, 4), None, None) == Placement(1, 1, 0, most_workers=4)
    assert place_elastic(TWO_HOSTS, Workers(1, 3), None, None) == Placement(1, 2, 0, most_workers=3)
    assert place_elastic(TWO_HOSTS, Workers(2, 9), 2, 0) == Placement(2, 2, 0, most_workers=9)
    with pytest.raises(ResourceError, match=r"7 workers × 1 CPUs were asked for, but .* has room for 6"):
        place_elastic(TWO_HOSTS, Workers(7, 9), None, None)


def test_gpus_go_to_the_workers_that_there_are() -> None:
    hosts = (Host(cpus=8, gpus=2), Host(cpus=8, gpus=0))
    assert place_elastic(hosts, Workers(1, 4), None, None) == Placement(1, 4, 1, most_workers=4)


def test_a_fixed_number_is_placed_as_ever() -> None:
    assert place_elastic(TWO_HOSTS, Workers(2, 2), None, None) == place(TWO_HOSTS, 2, None, None)
    assert place(TWO_HOSTS, 2, None, None).number == 2
    assert Placement(1, 1, 0, most_workers=4).number == (1, 4)


def test_a_batch_must_do_for_the_most(tmp_path: Path) -> None:
    write_small(tmp_path)
    config = load_experiment(str(tmp_path / "small.yaml")).config
    plain = config.model_copy(update={"sampling": PlainSampling(batch=4)})
    Workers(1, 4).check_shares(plain)
    with pytest.raises(UserError, match="5 workers cannot share a global batch of 4 images"):
        Workers(1, 5).check_shares(plain)
    halves = plain.model_copy(update={"optimiser": plain.optimiser.model_copy(update={"accumulate": 2})})
    Workers(1, 2).check_shares(halves)
    with pytest.raises(UserError, match="3 workers cannot share a global batch of 4 images in 2 micro-batches each"):
        Workers(1, 3).check_shares(halves)
    episodic = config.model_copy(update={"sampling": EpisodicSampling(ways=2, shots=3, episodes=1)})
    Workers(1, 6).check_shares(episodic)
    with pytest.raises(UserError, match="global batch of 6 images"):
        Workers(1, 7).check_shares(episodic)


def test_the_number_of_workers_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    write_small(tmp_path)
    composed = load_experiment(str(tmp_path / "small.yaml"))
    cell = make_cell(composed, 0, load_tune(tmp_path / "data", composed.config.benchmark), None, "mgmrn")
    fixed, elastic = (
        cell.tags("study", placement) for placement in (Placement(2, 1, 0), Placement(1, 1, 0, most_workers=4))
    )
    assert {key for key in fixed if fixed[key] != elastic[key]} == {"mgmrn.world_size"}
    assert (fixed["mgmrn.world_size"], elastic["mgmrn.world_size"]) == ("2", "1..4")


def test_the_time_of_workers_counts_those_that_there_were(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    for epoch, workers in enumerate((2, 1, 4), start=1):
        spool.append(epoch, {"perf/epoch_s": 10.0, "perf/world_size": workers})
    assert spool.worker_seconds() == 70.0
