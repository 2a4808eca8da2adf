"""`--workers 1..2` on two hosts of which one is lost and another joins: the run goes on alone and grows again.

While the hosts change, the run is held at an evaluation, so that nothing depends on how fast they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
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
    """A picture of the evaluation images: while it is a pipe without a writer, no epoch ends."""

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
    """`python -m pipeline train` on the head."""

    def __init__(self, hosts: HostGroup, folder: Path, *arguments: str) -> None:
        there = ["sh", "-c", f'cd {folder} && exec "$@"', "sh", sys.executable, "-m", "pipeline", "train", *arguments]
        command, environment = hosts.inside(HEAD, there)
        self._out, self._err = (tempfile.NamedTemporaryFile(dir=folder, delete=False) for _ in "oe")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env=environment | hosts.head.client_environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def errors_so_far(self) -> str:
        return Path(self._err.name).read_text()

    def answer(self) -> dict[str, Any]:
        """Its output, once it has ended well."""
        assert self.process.wait(600) == 0, self.errors_so_far()
        assert "Traceback" not in self.errors_so_far()
        return dict(json.loads(Path(self._out.name).read_text()))


def worlds(folder: Path) -> list[int]:
    """Workers of every epoch noted."""
    texts = [path.read_text() for path in folder.glob(".mgmrn/runs/*.tune/spool.jsonl")]
    entries = [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [int(entry["metrics"]["perf/world_size"]) for entry in entries if entry["kind"] == "metrics"]


def worker_group(folder: Path) -> str:
    """Changes when rank 0 of another group of workers begins; it has not read a picture yet then."""
    (note,) = folder.glob(".mgmrn/runs/*.tune/placement_group")
    return note.read_text()


def test_a_run_goes_on_with_one_host_and_grows_to_two_again(tmp_path: Path) -> None:
    """Batches and schedule do not depend on the number of workers: `tests/unit/test_data_parallel.py`."""
    folder = tmp_path / "here"
    folder.mkdir()
    gate = Gate(folder / "data" / "TINY" / "images" / "007.Class_2" / "12.png")
    with host_group(tmp_path / "hosts", workers=2) as hosts:
        driver = Driver(hosts, folder, *write_small(folder), *LENGTH, *FROZEN, "--workers", "1..2")
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
            answer = driver.answer()
        finally:
            driver.process.kill()
    client = MlflowClient(f"sqlite:///{folder / '.mgmrn' / 'mlflow.db'}")
    run = client.get_run(answer["runs"][0]["run_id"])
    assert run.info.status == "FINISHED"
    assert (run.data.tags["mgmrn.world_size"], run.data.tags["mgmrn.attempt"]) == ("1..2", "1")
    sizes = [metric.value for metric in client.get_metric_history(run.info.run_id, "perf/world_size")]
    assert re.fullmatch("2{2,}1+2+", "".join(f"{size:.0f}" for size in sizes)), sizes
    steps = steps_of(client, run)
    for key in ("train/total", "train/lr", "val/ausuc", "perf/world_size"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key
