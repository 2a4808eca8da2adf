"""Ranges of workers: how they are written, what they may be, what they get of a cluster; they are no part of a run's identity."""

from pathlib import Path

import pytest

from mgmrn.config import EpisodicSampling, PlainSampling
from mgmrn.errors import ResourceError, UserError
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.train import placement
from pipeline.train.cell import Cell
from pipeline.train.placement import Host, Placement, Workers, parse_workers, place_elastic, place_trials
from pipeline.where import Where

TWO_HOSTS = (Host(cpus=4, gpus=0), Host(cpus=2, gpus=0))


def test_a_number_or_a_range() -> None:
    for text, workers in {"2": Workers(2, 2), "1..4": Workers(1, 4), " 3..3 ": Workers(3, 3)}.items():
        assert parse_workers(text) == workers == parse_workers(str(workers))


@pytest.mark.parametrize("text", ["", "two", "-1", "1..", "..4", "1-4", "1...4", "1.5", "0x2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be a number or a range, got .* \[--workers\] \(like 2 or 1\.\.4\)"):
        parse_workers(text)


@pytest.mark.parametrize("text", ["0", "0..2", "4..1"])
def test_a_range_that_holds_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="at least 1 and rise"):
        parse_workers(text)


def test_the_least_must_fit_and_the_rest_may_come_later() -> None:
    """The CPUs and GPUs are shared by as many workers as fit now."""
    assert place_elastic(TWO_HOSTS, Workers(1, 4), None, None) == Placement(1, 1, 0, most_workers=4)
    assert place_elastic(TWO_HOSTS, Workers(1, 3), None, None) == Placement(1, 2, 0, most_workers=3)
    assert place_elastic(TWO_HOSTS, Workers(2, 9), 2, 0) == Placement(2, 2, 0, most_workers=9)
    with pytest.raises(ResourceError, match=r"7 workers × 1 CPUs were asked for, but .* has room for 6"):
        place_elastic(TWO_HOSTS, Workers(7, 9), None, None)
    with_gpus = (Host(cpus=8, gpus=2), Host(cpus=8, gpus=0))
    assert place_elastic(with_gpus, Workers(1, 4), None, None) == Placement(1, 4, 1, most_workers=4)
    assert place_elastic(TWO_HOSTS, Workers(2, 2), None, None) == placement.place(TWO_HOSTS, 2, None, None)


@pytest.mark.parametrize(("part", "at_once"), [(0.125, 16), (0.1, 20), (0.3, 6), (0.4, 4), (0.5, 4), (1, 2), (2, 1)])
def test_runs_of_one_worker_share_a_gpu_and_none_uses_parts_of_two(part: float, at_once: int) -> None:
    hosts = (Host(cpus=64, gpus=2), Host(cpus=64, gpus=0))
    placed = at_once, Placement(1, 64 // at_once, part)
    assert place_trials(hosts, Where(gpus_per_worker=part), 1000, 1, None) == placed
    sentence = rf"× 1 CPUs and {part} GPUs were asked for, .* has room for {at_once} such"
    with pytest.raises(ResourceError, match=sentence):
        place_trials(hosts, Where(gpus_per_worker=part, cpus_per_worker=1), 1000, 1, at_once + 1)


@pytest.mark.parametrize(
    ("concurrency", "workers", "asked", "gpus"),
    [(1, 1, None, 1), (2, 1, None, 1), (3, 1, None, 1 / 2), (16, 1, None, 1 / 8), (16, 1, 0, 0), (4, 2, None, 0)],
)
def test_more_runs_than_gpus_share_these_unless_something_else_was_asked_for(
    concurrency: int, workers: int, asked: float | None, gpus: float
) -> None:
    hosts = (Host(cpus=16, gpus=2),)
    assert place_trials(hosts, Where(gpus_per_worker=asked), 99, workers, concurrency)[1].gpus_per_worker == gpus
    few_cpus_beside_the_gpu = (Host(cpus=2, gpus=1), Host(cpus=8, gpus=0))
    assert place_trials(few_cpus_beside_the_gpu, Where(), 99, 1, 4)[1].gpus_per_worker == 0


@pytest.mark.parametrize(
    ("peak", "gpu", "part"),
    [
        (0.9, 80, 0.125),
        (7.0, 80, 0.125),
        (7.6, 80, 0.25),
        (30, 80, 0.5),
        (32, 80, None),
        (0.9, 8, 0.25),
        (0.9, 0, None),
    ],
)
def test_the_smallest_part_of_a_gpu_that_has_room_to_spare(peak: float, gpu: float, part: float | None) -> None:
    assert placement.smallest_part(1024 * peak, 1024 * gpu) == part


@pytest.mark.parametrize(("gpus", "workers"), [(1.5, 1), (float("nan"), 1), (float("inf"), 1), (0.5, 2)])
def test_gpus_that_no_worker_can_have(gpus: float, workers: int) -> None:
    with pytest.raises(UserError, match=r"whole GPUs or a part of one|2 workers of one run cannot share a GPU"):
        placement.check_gpus(gpus, workers)
    for fine in (None, 0.0, 0.5, 2.0):
        placement.check_gpus(fine, 1)


@pytest.mark.parametrize(
    ("sampling", "accumulate", "most", "message"),
    [
        (PlainSampling(batch=4), 1, 4, "global batch of 4 images"),
        (PlainSampling(batch=4), 2, 2, "global batch of 4 images in 2 micro-batches each"),
        (EpisodicSampling(ways=2, shots=3, episodes=1), 1, 6, "global batch of 6 images"),
    ],
)
def test_a_batch_must_do_for_the_most(
    small_cell: Cell, sampling: PlainSampling | EpisodicSampling, accumulate: int, most: int, message: str
) -> None:
    optimiser = small_cell.config.optimiser.model_copy(update={"accumulate": accumulate})
    config = small_cell.config.model_copy(update={"sampling": sampling, "optimiser": optimiser})
    Workers(1, most).check_shares(config)
    with pytest.raises(UserError, match=f"{most + 1} workers cannot share a {message}"):
        Workers(1, most + 1).check_shares(config)


def test_cuda_graphs_are_for_one_worker(small_cell: Cell) -> None:
    schedule = small_cell.config.schedule.model_copy(update={"compile": "graphs"})
    config = small_cell.config.model_copy(update={"schedule": schedule})
    Workers(1, 1).check_shares(config)
    with pytest.raises(
        UserError, match=r"recorded for runs of one worker, and 2 were asked for \[schedule.compile\]"
    ) as told:
        Workers(1, 2).check_shares(config)
    assert told.value.hint == "set it to auto, or train with one worker"


def test_the_number_of_workers_is_no_part_of_a_runs_identity(small_cell: Cell) -> None:
    placements = Placement(2, 1, 0), Placement(1, 1, 0, most_workers=4)
    fixed, elastic = (small_cell.tags("study", one) for one in placements)
    assert {key for key in fixed if fixed[key] != elastic[key]} == {"mgmrn.world_size"}
    assert (fixed["mgmrn.world_size"], elastic["mgmrn.world_size"]) == ("2", "1..4")


def test_the_time_of_workers_counts_those_that_there_were(tmp_path: Path) -> None:
    spool = Spool(StoragePath.parse(tmp_path))
    for epoch, workers in enumerate((2, 1, 4), start=1):
        spool.append(epoch, {"perf/epoch_s": 10.0, "perf/world_size": workers})
    assert spool.worker_seconds() == 70.0
