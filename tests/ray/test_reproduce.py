"""A run that is run again on the same machine comes to the same bits, at every step of every figure."""

from __future__ import annotations

import pytest

from tests.ray.command import Place
from tests.ray.small import write_small
from tests.ray.tracked import client_of, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]


def test_every_figure_is_the_same_and_the_reproduction_stands_apart(place: Place) -> None:
    small, *data = write_small(place.folder)
    trained = place.run("train", small, *data, "--seeds", "5", "--cpus-per-worker", "1", "--json")
    assert trained.code == 0, trained.err
    final = trained.json["runs"][1]
    answer = place.run("reproduce", final["name"], *data, "--json")
    assert answer.code == 0, answer.err
    said = answer.json
    assert (said["verdict"], said["comparison"], said["remarks"]) == ("equal", "bitwise", [])
    assert said["run_id"] == final["run_id"]
    assert {one["verdict"] for one in said["metrics"]} == {"equal"}
    figures = {one["metric"]: one["now"] for one in said["metrics"]}
    assert figures["test/gzsl_h"] == final["metrics"]["test/gzsl_h"]
    assert any(name.startswith("train/") for name in figures)

    client = client_of(place)
    again = client.get_run(said["reproduction_run_id"])
    assert again.info.status == "FINISHED" and again.info.run_id not in {run.info.run_id for run in runs_of(client)}
    tags = {key: again.data.tags[f"mgmrn.{key}"] for key in ("kind", "reproduces", "reproduction")}
    assert tags == {"kind": "reproduction", "reproduces": said["run_id"], "reproduction": "equal"}
    assert list(place.folder.glob(".mgmrn/runs/*.final/checkpoint_*")), "the original's checkpoints are left alone"
    assert client.get_run(said["run_id"]).info.status == "FINISHED"
