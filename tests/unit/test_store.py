"""Runs in a real MLflow store (sqlite): created, found, resumed, closed; addresses, new databases, refusals and forged names."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow.tracking
import pytest
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from mgmrn.errors import UserError
from pipeline.config.compose import load_experiment, values_of
from pipeline.errors import TrackingError
from pipeline.spool import PARENT_TAG, DatasetInput, NewRun
from pipeline.tracking.connection import PASSWORD_VARIABLE, translated
from pipeline.tracking.registry import EXPORTED, fetch_exported, register
from pipeline.tracking.store import DRIVER_TAG, TrackingStore, driver_tag
from tests.runs import create_child

CONFIG = load_experiment("cub100").config
CLIENT = mlflow.tracking.MlflowClient


def child(store: TrackingStore, config_hash: str = "h1", split: str = "tune") -> str:
    parent = store.create_parent("launch", {"mgmrn.kind": "train"})
    tags = {"mgmrn.kind": "run", "mgmrn.config_hash": config_hash, "mgmrn.split": split}
    return create_child(store, parent, "cub.full.s3.1f0c9a2e", tags, CONFIG)


def test_a_child_carries_name_tags_parent_config_data_set_and_artifacts(store: TrackingStore, tmp_path: Path) -> None:
    run_id = child(store)
    run = store.get(run_id)
    assert (run.name, run.status, run.tags["mgmrn.split"]) == ("cub.full.s3.1f0c9a2e", "RUNNING", "tune")
    assert run.parent_run_id is not None and store.get(run.parent_run_id).name == "launch"
    dataset = DatasetInput("CUB", "0123abcd", "tune", {"train_images": 3})
    for _ in range(2):
        store.describe_run(run_id, NewRun("again", {}, datasets=[dataset]))
    found = store.client.get_run(run_id)
    assert found.data.params.keys() == values_of(CONFIG).keys()
    assert (found.data.params["model.levels"], found.data.params["optimiser.clip_norm"]) == ("[c4, c5]", "null")
    (logged,) = found.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("CUB", "0123abcd")
    assert json.loads(logged.dataset.profile) == {"train_images": 3}
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "tune")]
    (tmp_path / "files" / "eval").mkdir(parents=True)
    (tmp_path / "files" / "eval" / "a.csv").write_text("x\n")
    store.log_artifacts(run_id, tmp_path / "files")
    beside = tmp_path.glob(f"mlruns/{run_id}/artifacts/eval/a.csv")
    assert [path.read_text() for path in beside] == ["x\n"], "artifacts stand beside the database"


@pytest.mark.parametrize("is_of_an_earlier_version", [False, True])
def test_a_copied_store_finds_its_files_and_writes_nothing_into_the_old_place(
    is_of_an_earlier_version: bool, tmp_path: Path, tables: Path
) -> None:
    old, new, file = tmp_path / "old place", tmp_path / "new" / "place", tmp_path / EXPORTED
    for folder in (old, file.parent):
        folder.mkdir()
    file.write_text("a model")
    shutil.copy(tables, old / "mlflow.db")
    if is_of_an_earlier_version:
        CLIENT(f"sqlite:///{old}/mlflow.db").create_experiment("mgmrn/train", (old / "mlruns").as_uri())
    store = TrackingStore.connect(f"sqlite:///{old}/mlflow.db")
    first = child(store)
    store.log_file(first, file, "eval")
    model = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=first)
    store.files_at(model.artifact_location).log_artifacts(str(file.parent), "artifacts")
    register(store, "mgmrn-X", model.model_uri, first, {}, "")
    shutil.copytree(old, new)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    store = TrackingStore.connect(f"sqlite:///{new}/mlflow.db")
    second = child(store)
    for run_id in (first, second):
        store.log_artifacts(run_id, file.parent)
    assert before == {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    shutil.rmtree(old)
    texts = [store.read_text(first, "eval/model.pt"), *(store.read_text(one, "model.pt") for one in (first, second))]
    models = [fetch_exported(store, uri, tmp_path).read_text() for uri in (model.model_uri, "models:/mgmrn-X/1")]
    assert {*texts, *models} == {"a model"} and not old.exists()


def test_a_failed_run_is_resumed_as_the_same_run_and_found_when_it_is_finished(store: TrackingStore) -> None:
    run_id = child(store)
    store.log_metrics(run_id, 1, {"train/loss": 2.0, "train/lr": 0.1}, 0)
    store.finish(run_id, "FAILED", "workers-lost")
    copied = {"mgmrn.kind": "link", "mgmrn.config_hash": "h1", "mgmrn.split": "tune"}
    link = store.create_parent("left by a driver that died", copied)
    store.finish(link, "KILLED", "driver died")
    run, parent = store.find_resumable("h1", "tune"), store.create_parent("second launch", {})
    assert run is not None and run.run_id == run_id and store.find_finished("h1", "tune") is None
    store.resume(run, {PARENT_TAG: parent, "mgmrn.environment": "env/1"})
    again = store.get(run_id)
    assert (again.status, again.tags["mgmrn.attempt"], again.parent_run_id) == ("RUNNING", "2", parent)
    assert (store.logged_steps(run_id, "train/loss"), store.logged_steps(run_id, "val/ausuc")) == ({1}, set())
    assert store.histories(again, ("train/",)) == {"train/loss": {1: 2.0}, "train/lr": {1: 0.1}}
    store.finish(run_id, "FINISHED", "all epochs")
    found = store.find_finished("h1", "tune")
    assert found is not None and (found.run_id, found.tags["mgmrn.stop_reason"]) == (run_id, "all epochs")
    assert found.seconds is None, "the pause is no time of the run"
    assert store.find_finished("h1", "final") is store.find_finished("h2", "tune") is None
    assert store.find_resumable("h1", "tune") is None


def test_the_run_that_was_made_from_the_same_values_is_found(store: TrackingStore) -> None:
    new = NewRun("it's one", {"mgmrn.split": "tune"}, time_ms=5)
    assert store.find_made(new) is None
    run_id = store.create_run(new)
    assert store.find_made(new) == run_id
    for other in (replace(new, name="another"), replace(new, time_ms=6), replace(new, tags={"mgmrn.split": "final"})):
        assert store.find_made(other) is None


def test_runs_of_dead_drivers_are_closed_and_those_of_living_ones_are_not(store: TrackingStore) -> None:
    mine, dead, resumed, elsewhere, reused = (child(store, f"h{i}") for i in range(5))
    code = "from pipeline.driver import driver_tag; print(driver_tag())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    host, pid, started = driver_tag().rsplit(":", 2)
    tags = {dead: ended, resumed: ended, elsewhere: f"another-{host}:1:1.0"}
    for run_id, tag in (tags | {reused: f"{host}:{pid}:{float(started) - 1000}"}).items():
        store.set_tags(run_id, {DRIVER_TAG: tag})
    assert store.find_resumable("h0", "tune") is None
    assert store.find_resumable("h1", "tune") is not None
    assert {run.run_id for run in store.close_dead_runs(keep={resumed})} == {dead, reused}
    assert (store.get(dead).status, store.get(dead).tags["mgmrn.stop_reason"]) == ("KILLED", "driver died")
    assert {store.get(run_id).status for run_id in (mine, resumed, elsewhere)} == {"RUNNING"}


def test_an_inherited_experiment_id_leads_nowhere_else(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    mine = TrackingStore.connect(store.uri, "mgmrn/mine")
    run = mine.client.get_run(mine.create_parent("launch", {}))
    assert mine.client.get_experiment(run.info.experiment_id).name == "mgmrn/mine"


def test_more_values_than_one_request_takes(store: TrackingStore) -> None:
    run_id = store.create_parent("launch", {})
    store.set_tags(run_id, {f"tag{i}": "x" for i in range(101)})
    store.log_metrics(run_id, 1, {f"train/m{i}": 1.0 for i in range(1001)}, 0)
    run = store.get(run_id)
    assert (sum(tag.startswith("tag") for tag in run.tags), len(run.metrics)) == (101, 1001)
    with pytest.raises(TrackingError, match="the tracking store failed"):
        store.log_metrics(run_id, 1, {"H@1%": 1.0}, 0)


def test_an_address_without_a_store_is_told_in_one_sentence() -> None:
    for uri, message in (
        ("http://127.0.0.1:9", "unreachable: nothing answers"),
        ("postgresql+psycopg2://user:secret@127.0.0.1:9/x", "unreachable: nothing answers"),
        ("file:///tmp/mlruns", "is no tracking address"),
        ("postgresql://me:[secret@host:x/db", "is no tracking address"),
        ("sqlite:////dev/null/mlflow.db", "unreachable"),
    ):
        with pytest.raises(TrackingError, match=message) as caught:
            TrackingStore.connect(uri)
        assert "secret" not in str(caught.value)


def test_a_new_database_appears_whole_or_not_at_all(tmp_path: Path, tables: Path, monkeypatch: Any) -> None:
    uri, file, theirs = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db", []

    def make_one_table(made: Path) -> None:
        with closing(sqlite3.connect(made)) as database:
            database.execute("create table experiments (experiment_id integer)")
        raise KeyboardInterrupt

    def make_too_late(made: Path) -> None:
        shutil.copy(tables, file)
        theirs.append(TrackingStore.connect(uri).create_parent("theirs", {}))
        shutil.copy(tables, made)

    def client(tracking_uri: str) -> object:
        if not (made := Path(tracking_uri.removeprefix("sqlite:///"))).exists():
            make(made)
        return CLIENT(tracking_uri=tracking_uri)

    # In place of MLflow, which creates its tables one by one.
    monkeypatch.setattr(mlflow.tracking, "MlflowClient", client)
    make = make_one_table
    with pytest.raises(KeyboardInterrupt):
        TrackingStore.connect(uri)
    assert not list(tmp_path.iterdir())
    make = make_too_late
    assert TrackingStore.connect(uri).get(theirs[0]).name == "theirs", "a database of another command stays"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_forged_names_of_runs_and_artifacts_are_refused_before_the_store_is_asked(store: TrackingStore) -> None:
    for forged in ("../x", "", "a" * 31, "A" * 32, "a" * 32 + "/..", "a" * 32 + "\n", "' OR 1=1 --"):
        with pytest.raises(UserError, match="is no id of a run"):
            store.get(forged)
    for name in ("../../x", "/etc/passwd", "eval/../../x", "eval\\..\\x", "..", ""):
        with pytest.raises(UserError, match="leads out of the run's artifacts"):
            store.read_text("a" * 32, name)


def test_an_artifact_listing_that_climbs_out_writes_nothing_outside(tmp_path: Path, monkeypatch: Any) -> None:
    """MLflow's own check, on which the download of a model's folder relies."""
    repository = MlflowArtifactsRepository("mlflow-artifacts:/1/artifacts", "http://127.0.0.1:9")
    listing = [FileInfo("../../escaped", False, 1)]
    monkeypatch.setattr(repository, "list_artifacts", lambda path=None: listing if not path else [])
    monkeypatch.setattr(repository, "_download_file", lambda remote_file_path, local_path: Path(local_path).touch())
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    with pytest.raises(MlflowException):
        repository.download_artifacts("", str(target))
    assert not list(tmp_path.rglob("escaped"))


def test_refusals_are_one_sentence_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:hunter2@127.0.0.1:5000"
    refused = (
        "API request to http://h/api failed with exception HTTPConnectionPool(host='h', port=9): Max retries exceeded with "
        "url: /api (Caused by NewConnectionError(\"HTTPConnection(host='h', port=9): Failed to establish a new connection: "
        '[Errno 111] Connection refused"))'
    )
    for message, error in (
        ("the tracking server refuses these credentials", MlflowException("?", UNAUTHENTICATED)),
        ("does not allow this account", MlflowException("Permission denied", PERMISSION_DENIED)),
        ("does not answer: .Errno 111. Connection refused", MlflowException(refused)),
        ("the tracking store failed", OSError(f"{uri} is away")),
    ):
        with pytest.raises(TrackingError, match=message) as caught, translated(uri):
            raise error
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    asks = pytest.raises(TrackingError, match=f"asks for credentials .*{PASSWORD_VARIABLE}")
    with asks, translated("http://127.0.0.1:5000"):
        raise MlflowException("?", UNAUTHENTICATED)


def test_experiments_of_all_pages_are_found(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"mgmrn/ablation/{number}" for number in range(5)}
    for name in wanted:
        store.client.create_experiment(name)
    monkeypatch.setattr(store.client, "search_experiments", partial(store.client.search_experiments, max_results=2))
    assert {one.name for one in store.experiments("mgmrn/ablation/%")} == wanted


READERS = ["compare demo", f"compare {'0' * 32}", "report demo", "ui --links"]
READERS += ["predict RUN a.jpg", "explain RUN", "promote RUN", "reproduce RUN"]


@pytest.mark.parametrize("words", [*READERS, "plan demo"])
def test_a_verb_that_reads_makes_no_experiment(words: str, tmp_path: Path, tables: Path, typed: Any) -> None:
    shutil.copy(tables, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code, _, err = typed(*words.split(), f"--tracking-uri={uri}")
    assert code == (0 if words in ("compare demo", "ui --links", "plan demo") else 2), err
    assert [one.name for one in CLIENT(uri).search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("words", READERS)
def test_a_verb_that_reads_makes_no_database(words: str, tmp_path: Path, typed: Any) -> None:
    uri = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    code, _, err = typed(*words.split(), f"--tracking-uri={uri}")
    assert code == 2 and f"there is no tracking database {uri} [--tracking-uri]" in err
    assert not [*tmp_path.iterdir()]


def test_a_plan_without_a_database_makes_none(tmp_path: Path, asked: Any) -> None:
    code, answer, _ = asked("plan", "demo", f"--tracking-uri=sqlite:///{tmp_path}/mlflow.db", f"--data-root={tmp_path}")
    assert code == 0 and answer["totals"] == {"missing": 3}
    assert not [*tmp_path.iterdir()]
