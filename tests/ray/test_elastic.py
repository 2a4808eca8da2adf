"""`--workers 1..2` on two hosts of which one goes and comes back: the run goes on alone, grows again, and is the run that it would have been.

The hosts are two raylets on loopback. The run is held at an evaluation while the hosts change, so that nothing depends on how fast they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.ray.command import MARK, Answer, Place, a_place, wait_until
from tests.ray.small import write_small
from tests.ray.tracked import client_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EPOCHS = 6
FROZEN = ("--set", "model.backbone.trainable=none", "--set", "model.backbone.batch_norm=frozen")
LENGTH = ("--split", "tune", "--set", f"schedule.epochs={EPOCHS}", "--cpus-per-worker", "1", "--json")
SECOND_HOST = "127.0.0.2"


class Gate:
    """A picture of the evaluation images: while it is a pipe that nobody writes to, no epoch ends.

    Args:
        picture: its file.
    """

    def __init__(self, picture: Path) -> None:
        self._picture, self._aside = picture, picture.with_suffix(".aside")

    def close(self) -> None:
        pipe = self._picture.with_suffix(".pipe")
        os.link(self._picture, self._aside)
        os.mkfifo(pipe)
        os.replace(pipe, self._picture)

    def open(self) -> None:
        os.replace(self._aside, self._picture)


@dataclass(frozen=True)
class Elastic:
    """A run whose second host went and came back, and the same run on two hosts that stayed."""

    answer: Answer
    client: MlflowClient
    disturbed: Run
    undisturbed: Run

    def history(self, run: Run, key: str) -> list[float]:
        return [metric.value for metric in self.client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(tmp_path_factory.mktemp("elastic") / "here") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(place: Place) -> Iterator[Any]:
    """A head with one CPU; its processes are known as the place's own."""
    settings = {
        MARK: place.mark,
        "RAY_TMPDIR": str(place.ray_folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_memory_monitor_refresh_ms": "0",
        "PYTHONPATH": place.environment["PYTHONPATH"],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def elastic(place: Place, cluster: Any) -> Elastic:
    arguments = ("train", *write_small(place.folder), *LENGTH, *FROZEN, "--address", cluster.address)
    place.environment["RAY_AUTH_MODE"] = "disabled"
    second = cluster.add_node(num_cpus=1, node_ip_address=SECOND_HOST)
    gate = Gate(place.folder / "data" / "TINY" / "images" / "007.Class_2" / "0.png")
    running = place.start(*arguments, "--workers", "1..2")

    wait_until(lambda: len(worlds(place)) >= 2, "two epochs on two hosts", 300, running)
    gate.close()
    before = {worker.pid for worker in place.training_workers()}
    cluster.remove_node(second, allow_graceful=False)
    wait_until(
        lambda: any(worker.pid not in before for worker in place.training_workers()), "a worker alone", 300, running
    )
    gate.open()
    wait_until(lambda: 1 in worlds(place), "an epoch on one host", 300, running)
    gate.close()
    cluster.add_node(num_cpus=1, node_ip_address=SECOND_HOST)
    wait_until(lambda: len(place.training_workers()) == 2, "two workers again", 300, running)
    gate.open()
    answer = running.answer()
    assert answer.code == 0, answer.err
    undisturbed = place.run(*arguments, "--workers", "2", "--force")
    assert undisturbed.code == 0, undisturbed.err
    client = client_of(place)
    runs = [client.get_run(one.json["runs"][0]["run_id"]) for one in (answer, undisturbed)]
    return Elastic(answer, client, *runs)


def worlds(place: Place) -> list[int]:
    """Workers of every epoch noted."""
    lines = [line for path in place.folder.glob(".mgmrn/runs/*/spool.jsonl") for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [int(entry["metrics"]["perf/world_size"]) for entry in entries if entry["kind"] == "metrics"]


def test_it_went_on_with_one_and_grew_to_two_again(elastic: Elastic) -> None:
    sizes = "".join(f"{size:.0f}" for size in elastic.history(elastic.disturbed, "perf/world_size"))
    assert re.fullmatch("2{2,}1+2+", sizes), sizes


def test_every_epoch_is_there_once(elastic: Elastic) -> None:
    steps = steps_of(elastic.client, elastic.disturbed)
    for key in ("train/total", "train/lr", "val/ausuc", "perf/world_size"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key
    assert "Traceback" not in elastic.answer.err


def test_it_is_one_run_that_says_what_was_asked(elastic: Elastic) -> None:
    tags, others = elastic.disturbed.data.tags, elastic.undisturbed.data.tags
    assert elastic.disturbed.info.status == "FINISHED"
    assert (tags["mgmrn.world_size"], others["mgmrn.world_size"]) == ("1..2", "2")
    assert tags["mgmrn.attempt"] == "1"
    assert tags["mgmrn.config_hash"] == others["mgmrn.config_hash"]


def test_its_figures_are_those_of_an_undisturbed_run(elastic: Elastic) -> None:
    """The batches and the schedule are the same whatever the number of workers; only rounding may differ."""
    assert elastic.history(elastic.disturbed, "train/lr") == elastic.history(elastic.undisturbed, "train/lr")
    for key in ("val/zsl_t1", "val/ausuc"):
        found, wanted = (elastic.history(run, key) for run in (elastic.disturbed, elastic.undisturbed))
        assert found == pytest.approx(wanted, abs=0.03), key
