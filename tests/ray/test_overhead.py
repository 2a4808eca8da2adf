"""The benchmark of what Ray Train and MLflow cost, at a size at which it says nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.ray.command import Place
from tests.ray.small import write_small

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is left free")
def test_overhead_is_a_steady_epoch_against_the_plain_loop(place: Place) -> None:
    arguments = (*write_small(place.folder), "--set", "schedule.epochs=3", "--rounds", "1")
    command = [sys.executable, "-m", "benchmarks.overhead", *arguments]
    done = subprocess.run(
        command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    found = {one["name"]: one["median"] for one in answer["results"]}
    overhead = found["pipeline: steady epoch"] / found["plain loop: steady epoch"]
    assert answer["ratios"] == {"pipeline / plain loop, seconds per epoch": pytest.approx(overhead)}
    starts = found["pipeline: from its start to the end of epoch 1"]
    assert found["pipeline: a cached answer of `train`"] < starts, "nothing was trained for it"
    assert not (place.folder / ".mgmrn" / "mlflow.db").exists(), "what is measured is not tracked among the user's runs"
