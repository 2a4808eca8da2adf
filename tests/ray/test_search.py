"""A search on a tiny benchmark whose worker is killed, and then its driver; `--resume` finishes it.

All tests look at the same search, since each run under Ray costs some twenty seconds of a core.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.config.compose import load_experiment
from tests.ray.command import Answer, Place, a_place, wait_until
from tests.ray.small import write_small
from tests.ray.tracked import client_of, files_of, steps_of
from tests.recovery import time_recovery

pytestmark = pytest.mark.ray

SEARCH = Path(__file__).with_name("disturbed-search.yaml").read_text()
EPOCHS, TRIALS = 3, 5
"""As in the file."""


def write_search(place: Place, text: str = SEARCH) -> tuple[str, ...]:
    """Writes data, base and search; returns the arguments that run it."""
    _, *data = write_small(place.folder)
    (place.folder / "tiny-search.yaml").write_text(text)
    return ("search", "tiny-search.yaml", *data, "--json")


def runs_of_search(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("mgmrn/search/tiny-search")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def trials_of(runs: list[Run]) -> list[Run]:
    """Runs of trials, without those of the parent and the comparison."""
    return [run for run in runs if run.data.tags.get("mgmrn.variant", "").startswith("t0")]


def the_parent(runs: list[Run]) -> Run:
    (parent,) = (run for run in runs if run.data.tags["mgmrn.kind"] == "search")
    return parent


@dataclass(frozen=True)
class Searched:
    place: Place
    arguments: tuple[str, ...]
    refused: Answer
    """Answer of the same command without `--resume`, after the death of the driver."""
    answer: Answer
    client: MlflowClient
    runs: list[Run]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    with a_place(tmp_path_factory.mktemp("search") / "here") as place:
        arguments = write_search(place)
        running = place.start(*arguments, "--concurrency", "1")
        wait_until(lambda: len(epochs_noted(place)) >= 1, "an epoch was noted", 300, running)
        (worker,) = place.training_workers()
        seen = len(epochs_noted(place))
        worker.kill()
        time_recovery("search: worker killed", lambda: len(epochs_noted(place)) > seen, running)
        wait_until(lambda: len(epochs_noted(place, "t001")) >= 1, "the next trial noted an epoch", 300, running)
        running.kill()
        place.kill_all()
        refused = place.run(*arguments)
        resumed = place.start(*arguments, "--resume", "--concurrency", "2")
        seen = len(epochs_noted(place))
        time_recovery("search: driver killed", lambda: len(epochs_noted(place)) > seen, resumed)
        answer = resumed.answer(timeout=590)
        assert answer.code == 0, answer.err
        client = client_of(place)
        yield Searched(place, arguments, refused, answer, client, runs_of_search(client))


def epochs_noted(place: Place, trial: str = "t0") -> list[str]:
    spools = place.folder.glob(f".mgmrn/runs/search/*/tiny.{trial}*/spool/*")
    return [line for path in spools for line in path.read_text().splitlines() if '"metrics"' in line]


def study_of(place: Place) -> optuna.Study:
    storage = f"sqlite:///{place.folder / '.mgmrn' / 'studies.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.timeout(1200)
def test_every_trial_is_run_once_and_has_the_state_of_its_end(searched: Searched) -> None:
    counts = searched.answer.json["trials"]
    assert sum(counts[state] for state in ("finished", "stopped", "failed")) == TRIALS
    assert counts["finished"] >= 1 and counts["stopped"] >= 1 and counts["failed"] == 1
    trials = trials_of(searched.runs)
    assert sorted(run.data.tags["mgmrn.variant"] for run in trials) == [f"t{number:03d}" for number in range(TRIALS)]
    statuses = Counter(run.info.status for run in trials)
    assert statuses == {"FINISHED": counts["finished"], "KILLED": counts["stopped"], "FAILED": counts["failed"]}
    in_study = study_of(searched.place).get_trials()
    states = Counter(trial.state.name for trial in in_study)
    assert states == {"COMPLETE": counts["finished"], "PRUNED": counts["stopped"], "FAIL": counts["failed"]}
    for run in trials:
        if run.info.status == "KILLED":
            assert run.data.tags["mgmrn.stop_reason"] == "stopped early"
            steps = steps_of(searched.client, run)["val/ausuc"]
            assert 1 <= steps[0] <= steps[-1] < EPOCHS, "its partial curve is kept"
        if run.info.status == "FAILED":
            assert run.data.tags["mgmrn.stop_reason"] == "non-finite-loss"
            assert float(run.data.params["optimiser.head_lr"]) == 1e30
    assert all("non-finite" in trial.user_attrs["reason"] for trial in in_study if trial.state.name == "FAIL")


def test_a_killed_worker_and_a_killed_driver_leave_no_gap_and_no_double(searched: Searched) -> None:
    assert searched.refused.code == 2 and "--resume" in searched.refused.json["hint"]
    for run in trials_of(searched.runs):
        steps = steps_of(searched.client, run)
        assert all(len(set(found)) == len(found) for found in steps.values()), "no step is logged twice"
        if run.info.status == "FINISHED":
            assert steps["val/ausuc"] == list(range(1, EPOCHS + 1))
    attempts = {run.data.tags["mgmrn.variant"]: run.data.tags["mgmrn.attempt"] for run in trials_of(searched.runs)}
    assert attempts["t001"] == "2", "the trial that the driver left was resumed"


def test_one_parent_holds_all_runs_and_the_report(searched: Searched) -> None:
    parent = the_parent(searched.runs)
    assert (parent.info.run_id, parent.info.status) == (searched.answer.json["parent_run_id"], "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in searched.runs if run is not parent} == {parent.info.run_id}
    assert {"study.html", "trials.csv", "importances.json", "best.yaml"} <= files_of(searched.client, parent)
    (path,) = searched.answer.json["best_configs"]
    config = load_experiment(path).config
    assert config.optimiser.head_lr == searched.answer.json["best"]["point"]["optimiser.head_lr"]
    assert config.schedule.epochs == EPOCHS


def test_no_run_has_a_figure_of_the_test_images(searched: Searched) -> None:
    assert not [key for run in searched.runs for key in run.data.metrics if key.startswith("test/")]
    assert {run.data.tags["mgmrn.split"] for run in searched.runs} == {"tune", "launch"}


def test_the_winner_is_compared_with_the_base_over_fresh_seeds(searched: Searched) -> None:
    (comparison,) = searched.answer.json["comparisons"]
    assert comparison["best"]["n"] == comparison["base"]["n"] == comparison["difference"]["n"] == 3
    for variant in ("best", "base"):
        runs = [run for run in searched.runs if run.data.tags.get("mgmrn.variant") == variant]
        assert {run.data.tags["mgmrn.seed"] for run in runs} == {"1000", "1001", "1002"}
        scores = [
            max(metric.value for metric in searched.client.get_metric_history(run.info.run_id, "val/ausuc"))
            for run in runs
        ]
        assert comparison[variant]["mean"] == pytest.approx(sum(scores) / 3)
    logged = the_parent(searched.runs).data.metrics
    assert logged["confirm/difference/mean"] == pytest.approx(comparison["difference"]["mean"])


def test_a_search_that_has_ended_is_answered_without_starting_ray_where_it_was_moved(searched: Searched) -> None:
    place, old, sessions = searched.place, searched.place.folder, searched.place.ray_sessions
    place.folder = old.rename(old.with_name("moved"))
    again = place.run(*searched.arguments)
    assert again.code == 0, again.err
    best = [path.replace(str(old), str(place.folder)) for path in searched.answer.json["best_configs"]]
    assert again.json == searched.answer.json | {"status": "cached", "best_configs": best}
    assert all(Path(path).is_file() for path in best) and not old.exists()
    assert place.ray_sessions == sessions


@pytest.mark.timeout(120)
def test_a_trial_that_can_never_be_placed(place: Place) -> None:
    text = re.sub("  sampling.*\n", "", SEARCH).replace("fixed:\n", "fixed:\n  sampling.batch: 1000\n")
    arguments = write_search(place, text + "workers: 500\n")
    answer = place.run(*arguments)
    assert answer.code == 3, answer.err
    assert not place.ray_sessions, "no Ray was started"
    assert "500 workers" in answer.json["error"]
    assert not list(place.folder.glob(".mgmrn/runs/search/*"))
