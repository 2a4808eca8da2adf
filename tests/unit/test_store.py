"""Runs in a real MLflow store (sqlite): created, found, resumed, closed; and what is written into them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mgmrn.protocol import Evaluation, make_evaluation
from pipeline.config.compose import load_experiment, values_of
from pipeline.errors import TrackingError
from pipeline.spool import DatasetInput
from pipeline.tracking import artifacts
from pipeline.tracking.artifacts import EvaluationNames, write_evaluation, write_provenance
from pipeline.tracking.environment import GitState, environment, git_state
from pipeline.tracking.store import DRIVER_TAG, TrackingStore, driver_tag, run_name
from tests.runs import create_child

CONFIG = load_experiment("cub100").config


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> str:
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(tables, file)
    return f"sqlite:///{file}"


@pytest.fixture
def store(database: str, request: pytest.FixtureRequest) -> TrackingStore:
    return TrackingStore.connect(database, f"mgmrn/{request.node.name}")


def child(store: TrackingStore, config_hash: str = "h1", split: str = "tune") -> str:
    parent = store.create_parent("launch", {"mgmrn.kind": "train"})
    tags = {"mgmrn.config_hash": config_hash, "mgmrn.split": split}
    return create_child(store, parent, run_name("CUB", "full", 3, "1f0c9a2e77"), tags, CONFIG)


def dead_driver_tag() -> str:
    """The tag of a driver that has ended."""
    code = "from pipeline.tracking.store import driver_tag; print(driver_tag())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_child_carries_name_tags_parent_and_the_whole_config(store: TrackingStore) -> None:
    run_id = child(store)
    run = store.get(run_id)
    assert (run.name, run.status) == ("cub.full.s3.1f0c9a2e", "RUNNING")
    assert run.tags["mgmrn.split"] == "tune"
    assert run.parent_run_id is not None
    assert store.get(run.parent_run_id).name == "launch"
    params = store.client.get_run(run_id).data.params
    assert params.keys() == values_of(CONFIG).keys()
    assert params["model.levels"] == "[c4, c5]"
    assert params["optimiser.clip_norm"] == "null"


def test_artifacts_stand_beside_the_database(store: TrackingStore, database: str, tmp_path: Path) -> None:
    run_id = child(store)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "a.csv").write_text("x\n")
    store.log_artifacts(run_id, tmp_path)
    beside = Path(database.removeprefix("sqlite:///")).parent / "mlruns"
    assert [path.read_text() for path in beside.glob(f"{run_id}/artifacts/eval/a.csv")] == ["x\n"]


def test_only_a_finished_run_of_the_same_config_and_split_is_found(store: TrackingStore) -> None:
    run_id = child(store)
    assert store.find_finished("h1", "tune") is None
    store.finish(run_id, "FINISHED", "all epochs")
    found = store.find_finished("h1", "tune")
    assert found is not None
    assert (found.run_id, found.tags["mgmrn.stop_reason"]) == (run_id, "all epochs")
    assert store.find_finished("h1", "final") is None
    assert store.find_finished("h2", "tune") is None
    assert store.find_resumable("h1", "tune") is None


def test_a_failed_run_is_resumed_as_the_same_run(store: TrackingStore) -> None:
    run_id = child(store)
    store.log_metrics(run_id, 1, {"train/loss": 2.0, "train/lr": 0.1}, 0)
    store.finish(run_id, "FAILED", "workers-lost")
    run = store.find_resumable("h1", "tune")
    assert run is not None
    parent = store.create_parent("second launch", {})
    store.resume(run, parent)
    again = store.get(run_id)
    assert (again.status, again.tags["mgmrn.attempt"], again.parent_run_id) == ("RUNNING", "2", parent)
    assert store.logged_steps(run_id, "train/loss") == {1}
    assert store.logged_steps(run_id, "val/ausuc") == set()


def test_runs_of_dead_drivers_are_closed_and_those_of_living_ones_are_not(store: TrackingStore) -> None:
    mine, dead, resumed, elsewhere, reused = (child(store, f"h{i}") for i in range(5))
    tag = dead_driver_tag()
    for run_id in (dead, resumed):
        store.set_tags(run_id, {DRIVER_TAG: tag})
    host, pid, started = driver_tag().rsplit(":", 2)
    store.set_tags(elsewhere, {DRIVER_TAG: f"another-{host}:1:1.0"})
    store.set_tags(reused, {DRIVER_TAG: f"{host}:{pid}:{float(started) - 1000}"})
    assert store.find_resumable("h0", "tune") is None
    assert store.find_resumable("h1", "tune") is not None
    closed = store.close_dead_runs(keep={resumed})
    parents = {store.get(run_id).parent_run_id for run_id in (mine, dead, resumed, elsewhere, reused)}
    assert {run.run_id for run in closed} - parents == {dead, reused}
    assert (store.get(dead).status, store.get(dead).tags["mgmrn.stop_reason"]) == ("KILLED", "driver died")
    assert {store.get(run_id).status for run_id in (mine, resumed, elsewhere)} == {"RUNNING"}


def test_the_data_set_is_an_input_of_the_run(store: TrackingStore) -> None:
    run_id = child(store)
    dataset = DatasetInput("CUB", "0123abcd", "tune", {"train_images": 3})
    store.log_dataset(run_id, dataset)
    store.log_dataset(run_id, dataset)
    (logged,) = store.client.get_run(run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("CUB", "0123abcd")
    assert json.loads(logged.dataset.profile) == {"train_images": 3}
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "tune")]


def test_an_inherited_experiment_id_leads_nowhere_else(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    store = TrackingStore.connect(database, "mgmrn/mine")
    run = store.client.get_run(child(store))
    assert store.client.get_experiment(run.info.experiment_id).name == "mgmrn/mine"


def test_more_values_than_one_request_takes(store: TrackingStore) -> None:
    run_id = child(store)
    store.set_tags(run_id, {f"tag{i}": "x" for i in range(150)})
    store.log_metrics(run_id, 1, {f"train/m{i}": 1.0 for i in range(1100)}, 0)
    run = store.get(run_id)
    assert sum(tag.startswith("tag") for tag in run.tags) == 150
    assert len(run.metrics) == 1100


def test_a_refusal_is_a_tracking_error(store: TrackingStore) -> None:
    with pytest.raises(TrackingError, match="the tracking store failed"):
        store.log_metrics("no-such-run", 1, {"train/loss": 1.0}, 0)
    with pytest.raises(TrackingError, match="the tracking store failed"):
        store.log_metrics(child(store), 1, {"H@1%": 1.0}, 0)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "unreachable: nothing answers"),
        ("postgresql+psycopg2://user:secret@127.0.0.1:9/x", "unreachable: nothing answers"),
        ("file:///tmp/mlruns", "is no tracking address"),
        ("mlruns", "is no tracking address"),
        ("http://host:notaport", "unreachable"),
    ],
)
def test_an_address_where_nobody_is(uri: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        TrackingStore.connect(uri)
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="unreachable"):
        TrackingStore.connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def evaluation(count: int = 3, images: int = 8) -> Evaluation:
    rng = np.random.default_rng(0)
    return make_evaluation(
        "final",
        rng.normal(size=(images, count)).astype(np.float32),
        rng.normal(size=(images, count)).astype(np.float32),
        rng.integers(count - 1, size=images),
        np.full(images, count - 1),
        np.arange(images),
        images + np.arange(images),
        np.arange(count) < count - 1,
        gamma=0.25,
    )


def names(count: int = 3, images: int = 8) -> EvaluationNames:
    classes = [f"class {i}" for i in range(count)]
    return EvaluationNames(classes, [f"folder/{i}.jpg" for i in range(2 * images)])


def read(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_the_evaluation_tables_agree_with_the_scores(tmp_path: Path) -> None:
    data = evaluation()
    write_evaluation(tmp_path, data, names())
    folder = tmp_path / "eval"
    scores = np.concatenate([data.seen_scores, data.unseen_scores]) - data.result.gamma * data.seen_classes
    labels = np.concatenate([data.seen_labels, data.unseen_labels])
    predictions = read(folder / "predictions.csv")
    assert [row["prediction"] for row in predictions] == [f"class {i}" for i in scores.argmax(axis=1)]
    assert [row["label"] for row in predictions] == [f"class {i}" for i in labels]
    assert [int(row["correct"]) for row in predictions] == (scores.argmax(axis=1) == labels).astype(int).tolist()
    assert predictions[3]["image"] == "folder/3.jpg"
    ordered = np.sort(scores, axis=1)
    margins = [float(row["margin"]) for row in predictions]
    np.testing.assert_allclose(margins, ordered[:, -1] - ordered[:, -2], rtol=1e-4)
    for index, row in enumerate(read(folder / "per_class.csv")):
        of_class = labels == index
        assert int(row["images"]) == of_class.sum()
        assert float(row["accuracy"]) == pytest.approx((scores.argmax(axis=1) == labels)[of_class].mean(), nan_ok=True)
        assert row["group"] == ("seen" if data.seen_classes[index] else "unseen")
    confusion = np.array([[int(row[f"class {i}"]) for i in range(3)] for row in read(folder / "confusion.csv")])
    assert confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=3).tolist()
    curve = read(folder / "curve.csv")
    assert float(curve[0]["unseen"]) == float(curve[-1]["seen"]) == 0
    for name in ("curve.png", "confusion.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_large_tables_are_compressed_and_large_confusions_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LARGEST_PLAIN_TABLE", 10)
    write_evaluation(tmp_path, evaluation(count=61), names(count=61))
    assert len(read(tmp_path / "eval" / "predictions.csv.gz")) == 16
    assert not (tmp_path / "eval" / "confusion.png").exists()
    assert not (tmp_path / "eval" / "predictions.csv").exists()


def test_provenance_files(tmp_path: Path) -> None:
    composed = load_experiment("cub100", ["seed=5"])
    write_provenance(
        tmp_path,
        composed,
        environment(),
        GitState("abc", True, "+ a\n+ URI = 'postgresql://me:hunter2@db/x'\n", ("new.py",)),
    )
    text = (tmp_path / "config" / "resolved.yaml").read_text()
    assert yaml.safe_load(text)["seed"] == 5
    assert "# --set" in text
    assert json.loads((tmp_path / "env" / "environment.json").read_text())["packages"]["torch"]
    assert json.loads((tmp_path / "env" / "git.json").read_text())["untracked"] == ["new.py"]
    assert (tmp_path / "env" / "git.diff").read_text() == "+ a\n+ URI = 'postgresql://me:***@db/x'\n"


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert git_state(tmp_path) == GitState("none", False, "", ())
    git("init", "-q")
    assert git_state(tmp_path).sha == "none"
    (tmp_path / "a.txt").write_text("one\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = git_state(tmp_path)
    assert (len(clean.sha), clean.dirty, clean.tags()["mgmrn.code_dirty"]) == (40, False, "false")
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "b.txt").write_text("")
    dirty = git_state(tmp_path)
    assert (dirty.sha, dirty.dirty, dirty.untracked) == (clean.sha, True, ("b.txt",))
    assert "+two" in dirty.diff
