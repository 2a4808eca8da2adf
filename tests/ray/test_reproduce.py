"""A run that is run again on the same machine comes to the same bits, at every step of every figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.ray.command import Answer, Place, a_place
from tests.ray.small import write_small
from tests.ray.tracked import client_of, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.long]


@dataclass(frozen=True)
class Reproduced:
    place: Place
    trained: Answer
    answer: Answer


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reproduced]:
    with a_place(tmp_path_factory.mktemp("reproduce") / "here") as place:
        small, *data = write_small(place.folder)
        trained = place.run("train", small, *data, "--seeds", "5", "--cpus-per-worker", "1", "--json")
        assert trained.code == 0, trained.err
        answer = place.run("reproduce", trained.json["runs"][1]["name"], *data, "--json")
        yield Reproduced(place, trained, answer)


@pytest.mark.timeout(900)
def test_every_figure_is_the_same(reproduced: Reproduced) -> None:
    answer, final = reproduced.answer, reproduced.trained.json["runs"][1]
    assert answer.code == 0, answer.err
    said = answer.json
    assert (said["verdict"], said["comparison"], said["remarks"]) == ("equal", "bitwise", [])
    assert said["run_id"] == final["run_id"]
    assert {one["verdict"] for one in said["metrics"]} == {"equal"}
    figures = {one["metric"]: one["now"] for one in said["metrics"]}
    assert figures["test/gzsl_h"] == final["metrics"]["test/gzsl_h"]
    assert any(name.startswith("train/") for name in figures)


def test_the_reproduction_stands_apart(reproduced: Reproduced) -> None:
    client = client_of(reproduced.place)
    said = reproduced.answer.json
    again = client.get_run(said["reproduction_run_id"])
    assert again.data.tags["mgmrn.kind"] == "reproduction"
    assert again.data.tags["mgmrn.reproduces"] == said["run_id"]
    assert again.data.tags["mgmrn.reproduction"] == "equal"
    assert again.info.status == "FINISHED"
    assert again.info.run_id not in {run.info.run_id for run in runs_of(client)}
    original = client.get_run(said["run_id"])
    assert list(reproduced.place.folder.glob(".mgmrn/runs/*.final/checkpoint_*")), "its checkpoints are left alone"
    assert original.info.status == "FINISHED"
