"""The tracking server goes away in mid-run, comes back, goes away again before the end, and comes back when all is over.

`MGMRN_OUTAGE_SECONDS` sets the length of the first outage.
"""

import os
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.tracking.connection import PASSWORD_VARIABLE
from pipeline.tracking.environment import ENVIRONMENT_TAG
from pipeline.tracking.store import MODEL_TAG
from tests.cluster.tracking import TrackingServer, tracking_server
from tests.ray.command import Answer, Place, a_place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.tracked import assert_epochs_are_logged_once, files_of
from tests.recovery import time_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.long]

OUTAGE_SECONDS = float(os.environ.get("MGMRN_OUTAGE_SECONDS", "10"))
EPOCHS = 10 + round(OUTAGE_SECONDS)
"""Enough epochs, of some tenths of a second each, to last through most of the outage."""


def command(server: TrackingServer, place: Place) -> tuple[str, ...]:
    place.environment.update(server.environment)
    epochs = ("--set", f"schedule.epochs={EPOCHS}")
    return ("train", *write_small(place.folder), *long_epochs(10), *epochs, "--tracking-uri", server.uri, "--json")


def latest_run(client: MlflowClient, split: str) -> Run | None:
    """A split's latest run on the server."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    latest = {"max_results": 1, "order_by": ["attributes.start_time DESC"]}
    return next(iter(client.search_runs(experiments, f"tags.`mgmrn.split` = '{split}'", **latest)), None)


def epochs_sent(client: MlflowClient, split: str) -> int:
    """Number of epochs of a split's latest run on the server."""
    run = latest_run(client, split)
    assert run is not None
    return len(client.get_metric_history(run.info.run_id, "train/total"))


def disturb(server: TrackingServer, client: MlflowClient, place: Place) -> Answer:
    """Run the command with the outages; training goes on meanwhile, and no worker holds the password."""
    running = place.start(*command(server, place))
    wait_until(lambda: len(place.epochs_noted()) >= 2, "two epochs are over", 400, running)
    server.kill()
    before = len(place.epochs_noted())
    environments = "".join(str(worker.environ()) for worker in place.training_workers())
    assert "RAY_" in environments and PASSWORD_VARIABLE not in environments
    time.sleep(OUTAGE_SECONDS)
    left = len(place.epochs_noted())
    assert left - before >= 3
    server.start()
    time_recovery("train: tracking server away", lambda: epochs_sent(client, "tune") >= left, running)
    # Before that, the command would end without the run's id.
    wait_until(lambda: latest_run(client, "final") is not None, "the final run is created on the server", 400, running)
    server.kill()
    answer = running.answer()
    assert answer.code == 1, answer.err
    assert answer.json["status"] == "finished" and "give the same command again" in answer.err
    # Ray's processes have a low priority, so on a busy machine they end after seconds.
    wait_until(lambda: not place.processes(), "Ray has ended with the command", 30)
    server.start()
    return answer


def test_training_goes_on_while_the_server_is_away_and_the_next_command_has_every_step_once(tmp_path: Path) -> None:
    with tracking_server() as server, pytest.MonkeyPatch.context() as patch, a_place(tmp_path / "here") as place:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        client = MlflowClient(server.uri)
        disturbed = disturb(server, client, place)
        again = place.run(*command(server, place))
        assert again.code == 0, again.err
        assert again.json["status"] == "cached", "nothing is run a second time"
        files = [path for path in place.folder.rglob("*") if path.is_file()]
        assert files and not [path for path in files if server.password.encode() in path.read_bytes()]
        for printed in disturbed.json["runs"]:
            run = client.get_run(printed["run_id"])
            epochs = len(client.get_metric_history(run.info.run_id, "train/total"))
            assert epochs == EPOCHS or printed["split"] == "final"
            assert_epochs_are_logged_once(client, run, epochs, "train/total", "train/lr")
            figures = {key: value for key, value in printed["metrics"].items() if key.startswith("test/")}
            assert figures.items() <= run.data.metrics.items()
            assert {"config/resolved.yaml", "eval/curve.csv"} <= files_of(client, run)
            environment = f"{run.data.tags[ENVIRONMENT_TAG]}/environment.json"
            assert environment in files_of(client, client.get_run(run.data.tags["mlflow.parentRunId"]))
            assert run.data.params["schedule.epochs"] == str(EPOCHS)
            assert run.info.status == "FINISHED"
            assert (MODEL_TAG in run.data.tags) is (printed["split"] == "final")
            assert server.password not in str(run.to_dictionary())
        parent = client.get_run(disturbed.json["parent_run_id"])
        assert parent.info.status == "FINISHED" and parent.data.metrics
