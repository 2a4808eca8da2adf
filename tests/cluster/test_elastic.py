"""`--workers 1..2` on two hosts of which one is lost and another joins: the run goes on alone, grows again, and is the run it would have been.

While the hosts change, the run is held at an evaluation, so that nothing depends on how fast they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.hosts.group import HEAD, HostGroup, host_group
from tests.ray.command import REPOSITORY, wait_until
from tests.ray.small import write_small
from tests.ray.tracked import steps_of
from tests.recovery import time_recovery

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]

EPOCHS = 6
FROZEN = ("--set", "model.backbone.trainable=none", "--set", "model.backbone.batch_norm=frozen")
LENGTH = ("--split", "tune", "--set", f"schedule.epochs={EPOCHS}", "--cpus-per-worker", "1", "--json")


class Gate:
    """A picture of the evaluation images: while it is a pipe without a writer, no epoch ends.

    Args:
        picture: its file.
    """

    def __init__(self, picture: Path) -> None:
        self._picture, self._aside, self._pipe = picture, picture.with_suffix(".aside"), picture.with_suffix(".pipe")

    def close(self) -> None:
        os.link(self._picture, self._aside)
        os.mkfifo(self._pipe)
        put = self._pipe.with_suffix(".put")
        os.link(self._pipe, put)
        os.replace(put, self._picture)

    def open(self) -> None:
        os.replace(self._aside, self._picture)
        # A reader that waits at the pipe gets the picture through it; without a reader, opening it fails.
        with suppress(OSError):
            writing = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writing, self._picture.read_bytes())
            os.close(writing)
        self._pipe.unlink()


class Driver:
    """`python -m pipeline train` on the head.

    Args:
        hosts: the group.
        folder: working folder.
        arguments: of `train`.
    """

    def __init__(self, hosts: HostGroup, folder: Path, *arguments: str) -> None:
        there = ["sh", "-c", f'cd {folder} && exec "$@"', "sh", sys.executable, "-m", "pipeline", "train", *arguments]
        command, environment = hosts.inside(HEAD, there)
        self._out, self._err = (tempfile.NamedTemporaryFile(dir=folder, delete=False) for _ in "oe")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env=environment | hosts.client_environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def errors_so_far(self) -> str:
        return Path(self._err.name).read_text()

    def answer(self) -> dict[str, Any]:
        """What it printed, once it has ended well."""
        assert self.process.wait(600) == 0, self.errors_so_far()
        assert "Traceback" not in self.errors_so_far()
        return dict(json.loads(Path(self._out.name).read_text()))


@dataclass(frozen=True)
class Elastic:
    """A run one of whose hosts was lost and replaced, and the same run on two hosts that stayed."""

    client: MlflowClient
    disturbed: Run
    undisturbed: Run

    def history(self, run: Run, key: str) -> list[float]:
        return [metric.value for metric in self.client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostGroup]:
    with host_group(tmp_path_factory.mktemp("hosts"), workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def elastic(hosts: HostGroup, tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    folder = tmp_path_factory.mktemp("elastic")
    arguments = (*write_small(folder), *LENGTH, *FROZEN)
    gate = Gate(folder / "data" / "TINY" / "images" / "007.Class_2" / "12.png")
    driver = Driver(hosts, folder, *arguments, "--workers", "1..2")
    try:
        wait_until(lambda: len(worlds(folder)) >= 2, "two epochs on two hosts", 400, driver)
        with_two = worker_group(folder)
        gate.close()
        hosts.kill("w2")
        time_recovery("train --workers 1..2: host lost", lambda: worker_group(folder) != with_two, driver)
        with_one = worker_group(folder)
        gate.open()
        wait_until(lambda: 1 in worlds(folder), "an epoch on one host", 400, driver)
        gate.close()
        hosts.add()
        time_recovery("train --workers 1..2: host joins", lambda: worker_group(folder) != with_one, driver)
        gate.open()
        disturbed = driver.answer()
    finally:
        driver.process.kill()
    undisturbed = Driver(hosts, folder, *arguments, "--workers", "2", "--force").answer()
    client = MlflowClient(f"sqlite:///{folder / '.mgmrn' / 'mlflow.db'}")
    return Elastic(client, *(client.get_run(one["runs"][0]["run_id"]) for one in (disturbed, undisturbed)))


def worlds(folder: Path) -> list[int]:
    """Workers of every epoch noted."""
    texts = [path.read_text() for path in folder.glob(".mgmrn/runs/*.tune/spool.jsonl")]
    entries = [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [int(entry["metrics"]["perf/world_size"]) for entry in entries if entry["kind"] == "metrics"]


def worker_group(folder: Path) -> str:
    """Changes when rank 0 of another group of workers begins; it has not read a picture yet then."""
    (note,) = folder.glob(".mgmrn/runs/*.tune/placement_group")
    return note.read_text()


def test_it_went_on_with_one_and_grew_to_two_again(elastic: Elastic) -> None:
    sizes = "".join(f"{size:.0f}" for size in elastic.history(elastic.disturbed, "perf/world_size"))
    assert re.fullmatch("2{2,}1+2+", sizes), sizes


def test_every_epoch_is_there_once(elastic: Elastic) -> None:
    steps = steps_of(elastic.client, elastic.disturbed)
    for key in ("train/total", "train/lr", "val/ausuc", "perf/world_size"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key


def test_it_is_one_run_that_says_what_was_asked(elastic: Elastic) -> None:
    tags, others = elastic.disturbed.data.tags, elastic.undisturbed.data.tags
    assert elastic.disturbed.info.status == "FINISHED"
    assert (tags["mgmrn.world_size"], others["mgmrn.world_size"]) == ("1..2", "2")
    assert tags["mgmrn.attempt"] == "1"
    assert tags["mgmrn.config_hash"] == others["mgmrn.config_hash"]


def test_its_figures_are_those_of_an_undisturbed_run(elastic: Elastic) -> None:
    """Batches and schedule are the same whatever the number of workers; only rounding may differ."""
    assert elastic.history(elastic.disturbed, "train/lr") == elastic.history(elastic.undisturbed, "train/lr")
    for key in ("val/zsl_t1", "val/ausuc"):
        found, wanted = (elastic.history(run, key) for run in (elastic.disturbed, elastic.undisturbed))
        assert found == pytest.approx(wanted, abs=0.03), key
