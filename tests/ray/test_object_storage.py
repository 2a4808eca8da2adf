"""Runs, searches and grids in a bucket have the figures of those on a disk, also where the endpoint is away and processes are killed.

`MGMRN_OUTAGE_SECONDS` sets how long the endpoint is away.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.storage import StoragePath
from tests.objects import Endpoint, bucket
from tests.ray.command import Place, Running, a_place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.tracked import assert_epochs_are_logged_once, client_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(2400)]

OUTAGE_SECONDS = float(os.environ.get("MGMRN_OUTAGE_SECONDS", "60"))
EPOCHS = 5
LENGTH = ("--set", f"schedule.epochs={EPOCHS}", *long_epochs(60))
SEARCH = """\
# Question: does the machinery work? Cost: seconds.
base: small.yaml
fixed: {schedule.epochs: 3, sampling.kind: episodic, sampling.ways: 2, sampling.shots: 2, sampling.episodes: 30}
space:
  loss.regression: {kind: float, low: 0.01, high: 1, log: true}
sampler: {name: random, seed: 1}
trials: 4
"""
GRID = """\
# Question: does the machinery work?
base: small.yaml
fixed: {sampling.kind: episodic, sampling.ways: 2, sampling.shots: 2, sampling.episodes: 30}
variants:
  smooth: {loss.label_smoothing: 0.1}
seeds: [0, 1]
"""


def written(place: Place) -> tuple[str, ...]:
    """Writes data, experiment, search and grid; returns the options that name the data."""
    _, *data = write_small(place.folder)
    (place.folder / "tiny-search.yaml").write_text(SEARCH)
    (place.folder / "tiny-grid.yaml").write_text(GRID)
    return (*data, "--json")


def runs_of(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def figures(place: Place) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Values of every step of all runs that depend on the config alone, by name and split."""
    client = client_of(place)
    found = {}
    for run in runs_of(client):
        tags = run.data.tags
        if tags.get("mgmrn.kind") == "run":
            assert (tags["mgmrn.checkpoint_uri"].startswith("s3://")) is (place.storage.disk is None)
            keys = [key for key in run.data.metrics if not key.startswith("perf/")]
            histories = {key: client.get_metric_history(run.info.run_id, key) for key in keys}
            found[run.info.run_name, tags["mgmrn.split"]] = {
                key: {one.step: one.value for one in history} for key, history in histories.items()
            }
    return found


def on_a_disk(folder: Path, *words: str) -> Any:
    with a_place(folder) as place:
        answer = place.run(words[0], *words[1:], *written(place), timeout=1200)
        assert answer.code == 0, answer.err
        return figures(place)


@pytest.fixture
def place(tmp_path: Path, endpoint: Endpoint) -> Any:
    with a_place(tmp_path / "here") as made:
        made.environment |= endpoint.environment
        made.bucket = bucket(tmp_path.name)
        yield made


def go_away(endpoint: Endpoint) -> None:
    endpoint.stop()
    time.sleep(OUTAGE_SECONDS)
    endpoint.start()


def noted(place: Place, running: Running) -> Callable[[str], None]:
    """A function that waits until one epoch more is noted."""

    def wait(what: str) -> None:
        seen = len(place.epochs_noted())
        wait_until(lambda: len(place.epochs_noted()) > seen, f"an epoch is noted {what}", 400, running)

    return wait


def test_a_run_whose_worker_and_driver_are_killed_and_whose_endpoint_is_away(
    tmp_path: Path, place: Place, endpoint: Endpoint
) -> None:
    words = ("train", "small.yaml", *LENGTH, "--workers", "2")
    command = (*words, *written(place), "--storage", str(place.storage))
    running = place.start(*command)
    one_more = noted(place, running)
    one_more("at the start")
    place.training_workers()[0].kill()
    one_more("after a worker was killed")
    go_away(endpoint)
    one_more("after the endpoint was away")
    shown = " ".join(word for process in place.processes() for word in process.cmdline())
    running.kill()
    place.kill_all()
    lines = [line for line in running.errors_so_far().splitlines() if "does not answer" in line]
    assert len(lines) == 1 and lines[0].startswith("s3://runs-of-tests does not answer, waiting for it: "), lines
    again = place.run(*command, timeout=1200)
    assert again.code == 0, again.err
    assert "going on with run" in again.err
    client = client_of(place)
    for run in runs_of(client):
        if run.data.tags["mgmrn.split"] == "tune":
            assert_epochs_are_logged_once(client, run, EPOCHS, "train/total", "val/ausuc")
    assert figures(place) == on_a_disk(tmp_path / "disk", *words)
    assert not (place.folder / ".mgmrn" / "runs").exists()
    assert not [name for name in place.storage.names() if name.startswith("launch.")]
    assert (place.storage / "claims").names() == []
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"hunter2" in path.read_bytes()] and "hunter2" not in shown


def test_a_search_of_four_trials_whose_endpoint_is_away(tmp_path: Path, place: Place, endpoint: Endpoint) -> None:
    words = ("search", "tiny-search.yaml", "--concurrency", "1")
    root, command = place.storage, (*words, *written(place), "--storage", str(place.storage))
    running = place.start(*command)

    def folders() -> list[str]:
        return [name for name in (root / "search").names() if name.startswith("tiny-search-")]

    wait_until(lambda: folders() != [], "the search has a folder", 400, running)
    place.bucket = root / "search" / folders()[0]
    noted(place, running)("at the start")
    go_away(endpoint)
    answer = running.answer(1200)
    assert answer.code == 0, answer.err
    assert answer.json["trials"] == {"finished": 4}
    (best,) = answer.json["best_configs"]
    content = StoragePath(best).read()
    assert content is not None and content.startswith(b"# The best of a search")
    assert figures(place) == on_a_disk(tmp_path / "disk", *words)


def test_a_grid_of_four_cells_whose_driver_is_killed(tmp_path: Path, place: Place) -> None:
    words = ("ablate", "tiny-grid.yaml")
    command = (*words, *written(place), "--storage", str(place.storage))
    place.bucket = place.storage / "ablation"
    running = place.start(*command)
    noted(place, running)("at the start")
    running.kill()
    place.kill_all()
    answer = place.run(*command, timeout=1200)
    assert answer.code == 0, answer.err
    assert answer.json["totals"] == {"cached": 4}
    client = client_of(place)
    assert all(len(set(found)) == len(found) for run in runs_of(client) for found in steps_of(client, run).values())
    assert figures(place) == on_a_disk(tmp_path / "disk", *words)
