"""A tracking database that is removed while runs train: the launch ends with its figures, the next command tracks them."""

from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.ray.command import Answer, Place, wait_until
from tests.ray.small import long_epochs, write_small
from tests.ray.test_ablation import write_grid
from tests.ray.test_kills import epochs_noted, search
from tests.ray.tracked import children_of, client_of, files_of, runs_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.long]


def disturbed(place: Place, command: tuple[str, ...]) -> Answer:
    """Answer of a command whose database is removed after the first epoch of a run."""
    running = place.start(*command)
    wait_until(lambda: epochs_noted(place) >= 1, "the first epoch was noted", 300, running)
    Path(place.tracking_uri.removeprefix("sqlite:///")).unlink()
    answer = running.answer(timeout=800)
    assert answer.code == 1, answer.err
    assert "Traceback" not in answer.err and len(answer.err) < 10_000
    assert "cannot be tracked now: the tracking database was removed" in answer.err
    (error,) = (line for line in answer.err.splitlines() if line.startswith("error: "))
    assert "give the same command again" in error
    return answer


def given_again(place: Place, command: tuple[str, ...]) -> Answer:
    """Answer of the same command, which tracks all and trains nothing."""
    epochs = epochs_noted(place)
    again = place.run(*command, timeout=800)
    assert again.code == 0, again.err
    assert epochs_noted(place) == epochs
    return again


def assert_epochs_are_tracked_once(client: MlflowClient, run: Run) -> None:
    assert run.info.status == "FINISHED"
    steps = steps_of(client, run)["train/total"]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.timeout(900)
def test_a_run_whose_database_is_removed_is_tracked_by_the_next_command_without_training(place: Place) -> None:
    command = ("train", *write_small(place.folder), *long_epochs(20), "--json")
    answer = disturbed(place, command)
    assert answer.json["status"] == "finished"
    assert {run["split"]: run["status"] for run in answer.json["runs"]} == {"tune": "finished", "final": "finished"}
    again = given_again(place, command)
    assert again.json["status"] == "cached"
    first, second = (
        [{key: run[key] for key in ("split", "metrics", "gamma")} for run in one.json["runs"]]
        for one in (answer, again)
    )
    assert first == second
    client = client_of(place)
    runs = children_of(client)
    (parent,) = (run for run in runs_of(client) if run.data.tags["mgmrn.kind"] == "launch")
    assert {run.info.run_id for run in runs} == {run["run_id"] for run in again.json["runs"]}
    for run in runs:
        assert_epochs_are_tracked_once(client, run)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert {"eval/curve.csv", "config/resolved.yaml"} <= files_of(client, run)
        assert run.data.params and run.inputs.dataset_inputs


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["ablate", "search"])
def test_many_runs_whose_database_is_removed_are_tracked_by_the_next_command(place: Place, verb: str) -> None:
    command = search(place) if verb == "search" else ("ablate", *write_grid(place))
    disturbed(place, command)
    given_again(place, command)
    client = client_of(place)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if run.data.tags["mgmrn.kind"] in ("search", "ablation"))
    cells = [run for run in runs if run.data.tags["mgmrn.kind"] == "run"]
    assert len(cells) >= 4
    for run in cells:
        assert_epochs_are_tracked_once(client, run)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id or verb == "search"
    if verb == "ablate":
        assert {"comparison.csv", "comparison.json"} <= files_of(client, parent)
