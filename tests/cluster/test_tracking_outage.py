"""The tracking server goes away in mid-run, comes back, goes away again before the end, and comes back when all is over.

`MGMRN_OUTAGE_SECONDS` sets the length of the first outage. The same launch without outages is what everything is compared with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.tracking.connection import PASSWORD_VARIABLE
from pipeline.tracking.model import MODEL_TAG
from tests.cluster.tracking import TrackingServer, tracking_server
from tests.ray.command import Answer, Place, a_place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.tracked import files_of
from tests.recovery import time_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.long]

OUTAGE_SECONDS = float(os.environ.get("MGMRN_OUTAGE_SECONDS", "10"))
EPOCHS = 10 + round(OUTAGE_SECONDS)
"""Of some tenths of a second each, as every one is waited for: enough to go on through most of the outage."""
Values = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Launch:
    """What became of `tune` and `final` of one command."""

    answer: Answer
    place: Place
    epochs_in_the_outage: int = 0
    environments: str = ""
    """Of the workers, one after another."""

    def run_id(self, split: str) -> str:
        return next(run["run_id"] for run in self.answer.json["runs"] if run["split"] == split)


@pytest.fixture(scope="module")
def server(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    with tracking_server() as running:
        for name, value in running.environment.items():
            monkeypatch_module.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def client(server: TrackingServer) -> MlflowClient:
    return MlflowClient(server.uri)


def command(server: TrackingServer, place: Place) -> tuple[str, ...]:
    place.environment.update(server.environment)
    epochs = ("--set", f"schedule.epochs={EPOCHS}")
    return ("train", *write_small(place.folder), *long_epochs(5), *epochs, "--tracking-uri", server.uri, "--json")


@pytest.fixture(scope="module")
def undisturbed(server: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with a_place(tmp_path_factory.mktemp("undisturbed")) as place:
        # Anew, since the other launch has finished runs of the same configs.
        yield Launch(place.run(*command(server, place), "--force"), place)


@pytest.fixture(scope="module")
def disturbed(
    server: TrackingServer, client: MlflowClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launch]:
    with a_place(tmp_path_factory.mktemp("disturbed")) as place:
        running = place.start(*command(server, place))
        wait_until(lambda: len(place.epochs_noted()) >= 2, "two epochs are over", 400, running)
        server.kill()
        before = len(place.epochs_noted())
        environments = "".join(str(worker.environ()) for worker in place.training_workers())
        time.sleep(OUTAGE_SECONDS)
        during = len(place.epochs_noted()) - before
        server.start()
        left = len(place.epochs_noted())
        time_recovery("train: tracking server away", lambda: epochs_sent(client, "tune") >= left, running)
        wait_until(lambda: spools_of(place, "final") != [], "the final run notes its first epoch", 400, running)
        server.kill()
        answer = running.answer()
        server.start()
        yield Launch(answer, place, during, environments)


def epochs_sent(client: MlflowClient, split: str) -> int:
    """Epochs of the latest run of a split that the server knows of."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(
        experiments, f"tags.`mgmrn.split` = '{split}'", max_results=1, order_by=["attributes.start_time DESC"]
    )
    return len(client.get_metric_history(run.info.run_id, "train/total"))


def spools_of(place: Place, split: str) -> list[Path]:
    return list(place.folder.glob(f".mgmrn/runs/*.{split}/spool.jsonl"))


def values_of(client: MlflowClient, run_id: str) -> Values:
    """Every metric's history as it was logged, but for what measures the machine."""
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("perf/")]
    return {key: [(one.step, one.value) for one in client.get_metric_history(run_id, key)] for key in keys}


def test_training_goes_on_while_the_server_is_away(disturbed: Launch) -> None:
    assert disturbed.answer.code == 1, disturbed.answer.err
    assert disturbed.answer.json["status"] == "finished"
    assert disturbed.epochs_in_the_outage >= 3
    assert "give the same command again" in disturbed.answer.err
    # Ray's processes are nice: on a machine that is busy with other tests their own end takes them seconds.
    wait_until(lambda: not disturbed.place.processes(), "Ray has ended with the command", 30)


def test_workers_and_what_is_left_on_disk_hold_no_password(server: TrackingServer, disturbed: Launch) -> None:
    assert "RAY_" in disturbed.environments
    assert PASSWORD_VARIABLE not in disturbed.environments
    password = server.password.encode()
    files = [path for path in disturbed.place.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password in path.read_bytes()]


def test_the_next_command_completes_what_was_left_and_every_step_is_there_once(
    server: TrackingServer, client: MlflowClient, disturbed: Launch, undisturbed: Launch
) -> None:
    again = disturbed.place.run(*command(server, disturbed.place))
    assert again.code == 0, again.err
    assert again.json["status"] == "cached", "nothing is run a second time"
    assert undisturbed.answer.code == 0, undisturbed.answer.err
    for split in ("tune", "final"):
        ours, theirs = disturbed.run_id(split), undisturbed.run_id(split)
        run, other = client.get_run(ours), client.get_run(theirs)
        assert values_of(client, ours) == values_of(client, theirs)
        steps = [step for step, _ in values_of(client, ours)["train/total"]]
        assert steps == list(range(1, len(steps) + 1))
        assert set(run.data.metrics) == set(other.data.metrics)
        assert files_of(client, run) == files_of(client, other) != set()
        assert run.data.params == other.data.params
        assert run.info.status == other.info.status == "FINISHED"
        assert (MODEL_TAG in run.data.tags) is (MODEL_TAG in other.data.tags) is (split == "final")
        assert server.password not in str(run.to_dictionary())
    parents = [client.get_run(one.answer.json["parent_run_id"]) for one in (disturbed, undisturbed)]
    assert parents[0].data.metrics.keys() == parents[1].data.metrics.keys() != set()
    assert {parent.info.status for parent in parents} == {"FINISHED"}
