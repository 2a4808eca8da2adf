"""What a launch does about a tracking store that is away at its end, and what strangers may make of the store's names."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED

from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.interruption import Interruption
from pipeline.tracking import sender as sender_module
from pipeline.tracking.connection import PASSWORD_VARIABLE
from pipeline.tracking.store import TrackingStore
from pipeline.train import tracked
from pipeline.train.tracked import parent_run, send_leftovers


@pytest.fixture
def store(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    monkeypatch.setattr(sender_module, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(sender_module, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(tracked, "END_SECONDS", 0.05)
    shutil.copy(tables, tmp_path / "mlflow.db")
    return TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")


def take_away(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: object, **named: object) -> None:
        raise MlflowException("connection refused")

    for method in ("log_batch", "set_terminated", "log_artifacts", "get_metric_history"):
        monkeypatch.setattr(store.client, method, away)


def folders(storage: Path) -> list[Path]:
    return list(storage.glob("launch.*"))


def test_a_launch_that_ends_while_the_store_is_away_is_completed_by_the_next_command(
    tmp_path: Path, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, report = tmp_path / "runs", tmp_path / "report"
    report.mkdir()
    (report / "best.yaml").write_text("a: 1\n")
    with parent_run(store, storage, "key", "launch", {}) as launch:
        take_away(store, monkeypatch)
        launch.spool.append(0, {"val/ausuc/mean": 0.5})
        launch.attach(report)
        shutil.rmtree(report)
    told = capsys.readouterr().err
    assert told.startswith("error: a run is not wholly tracked") and told.count("\n") == 1
    assert not launch.is_tracked
    monkeypatch.undo()
    assert store.get(launch.run_id).status == "RUNNING"
    send_leftovers(storage, store, 5)
    run = store.get(launch.run_id)
    assert (run.status, run.tags["mgmrn.stop_reason"]) == ("FINISHED", "finished")
    assert run.metrics == {"val/ausuc/mean": 0.5}
    assert store.read_text(launch.run_id, "best.yaml") == "a: 1\n"


def test_a_launch_leaves_nothing_where_all_was_sent(tmp_path: Path, store: TrackingStore) -> None:
    with pytest.raises(Interruption), parent_run(store, tmp_path / "runs", "key", "launch", {}) as launch:
        assert folders(tmp_path / "runs")
        raise Interruption(signal.SIGINT)
    assert store.get(launch.run_id).status == "KILLED"
    assert not folders(tmp_path / "runs")


def test_a_signal_that_comes_while_ray_waits_closes_the_launch_as_any_other(
    tmp_path: Path, store: TrackingStore
) -> None:
    """Compiled code that a signal's handler interrupts raises a SystemError from it."""
    with pytest.raises(Interruption), parent_run(store, tmp_path / "runs", "key", "launch", {}) as launch:
        raise SystemError("returned a result with an exception set") from Interruption(signal.SIGTERM)
    run = store.get(launch.run_id)
    assert (run.status, run.tags["mgmrn.stop_reason"]) == ("KILLED", "terminated")


@pytest.mark.parametrize("forged", ["../x", "", "a" * 31, "A" * 32, "a" * 32 + "/..", "a" * 32 + "\n", "' OR 1=1 --"])
def test_a_forged_run_id_is_refused_before_anything_is_asked(store: TrackingStore, forged: str) -> None:
    with pytest.raises(UserError, match="is no id of a run"):
        store.get(forged)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "eval/../../x", "eval\\..\\x", "..", ""])
def test_a_name_that_climbs_out_of_the_artifacts_is_refused(store: TrackingStore, name: str) -> None:
    with pytest.raises(UserError, match="leads out of the run's artifacts"):
        store.read_text("a" * 32, name)


def test_an_artifact_listing_that_climbs_out_writes_nothing_outside(
    tmp_path: Path, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own check, on which bringing a whole folder of a model relies."""
    from mlflow.entities import FileInfo
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    repository = MlflowArtifactsRepository("mlflow-artifacts:/1/artifacts", "http://127.0.0.1:9")
    listing = [FileInfo("../../escaped", False, 1)]
    monkeypatch.setattr(repository, "list_artifacts", lambda path=None: listing if not path else [])
    monkeypatch.setattr(repository, "_download_file", lambda remote_file_path, local_path: Path(local_path).touch())
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    with pytest.raises(MlflowException):
        repository.download_artifacts("", str(target))
    with pytest.raises(MlflowException):
        LocalArtifactRepository(str(tmp_path / "a")).download_artifacts("../mlflow.db", str(target))
    assert not list(tmp_path.rglob("escaped"))


def test_refusals_are_one_sentence_without_the_password(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.uri = "http://me:hunter2@127.0.0.1:5000"
    cases = {
        "the tracking server refuses these credentials": MlflowException("?", UNAUTHENTICATED),
        "does not allow this account": MlflowException("Permission denied", PERMISSION_DENIED),
        "does not answer: .Errno 111. Connection refused": MlflowException(
            "API request to http://h/api failed with exception HTTPConnectionPool(host='h', port=9): Max retries exceeded with "
            "url: /api (Caused by NewConnectionError(\"HTTPConnection(host='h', port=9): Failed to establish a new connection: "
            '[Errno 111] Connection refused"))'
        ),
        "the tracking store failed": OSError("http://me:hunter2@127.0.0.1:5000 is away"),
    }
    for message, error in cases.items():
        with pytest.raises(TrackingError, match=message) as caught, store.translated():
            raise error
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    store.uri = "http://127.0.0.1:5000"
    with pytest.raises(TrackingError, match=f"asks for credentials .*{PASSWORD_VARIABLE}"), store.translated():
        raise MlflowException("?", UNAUTHENTICATED)
