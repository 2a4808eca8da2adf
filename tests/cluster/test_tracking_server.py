"""`cluster/mlflow/serve.sh`: logins, outages of its database, artifacts, refusals, and its end."""

import os
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import TrackingError
from pipeline.search.config import FloatRange, SearchConfig, SearchFile
from pipeline.search.space import Space
from pipeline.search.study import Study
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.tracking.sender import Sender
from pipeline.tracking.store import TrackingStore
from tests import leftovers
from tests.cluster.tracking import RUNS, SERVE, TrackingServer, tracking_server
from tests.ray.command import wait_until
from tests.recovery import time_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@pytest.fixture(scope="module")
def server() -> Iterator[TrackingServer]:
    with tracking_server() as running:
        yield running


@pytest.fixture
def allowed(server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    """The server for a client in `tmp_path`, where MLflow puts the artifacts of a database that it opens itself."""
    monkeypatch.chdir(tmp_path)
    for name, value in (server.environment | server.database_environment).items():
        monkeypatch.setenv(name, value)
    return server


def processes_of(server: TrackingServer) -> list[psutil.Process]:
    assert server.process is not None
    first = psutil.Process(server.process.pid)
    return [first, *first.children(recursive=True)]


def test_secrets_stand_in_files_of_their_owner_alone_and_the_server_listens_on_loopback_alone(
    server: TrackingServer,
) -> None:
    words = (server.password, (server.folder / "flask.key").read_text(), server.database.password)
    assert min(map(len, words)) >= 32
    files = [path for path in server.folder.iterdir() if path.is_file() and path.name != "server.log"]
    holding = {path.name for path in files if any(word in path.read_text() for word in words)}
    assert holding == {"credentials.env", "flask.key"}
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    commands = [" ".join(process.cmdline()) for process in processes_of(server)]
    assert any("basic-auth" in command for command in commands)
    assert not any(word in text for text in [*commands, server.log()] for word in words)
    connections = [one for process in processes_of(server) for one in process.net_connections("inet")]
    listening = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    assert listening and all(ip_address(address).is_loopback for address in listening), listening


def test_runs_outlive_a_restart_of_postgresql_under_the_living_server(allowed: TrackingServer, tmp_path: Path) -> None:
    store = TrackingStore.connect(allowed.uri, "mgmrn/restart")
    run_id = store.create_parent("launch", {"mgmrn.kind": "launch"})
    spool = Spool(StoragePath.parse(tmp_path / "run"))
    sender = Sender(spool, run_id, store).start()
    spool.append(1, {"train/loss": 1.0})
    wait_until(lambda: store.logged_steps(run_id, "train/loss") == {1}, "the first step is there")
    allowed.database.stop()
    spool.append(2, {"train/loss": 0.5})
    wait_until(lambda: sender.problem is not None, "the sender has met the outage")
    with pytest.raises(TrackingError, match="does not answer: too many 503"):
        store.get(run_id)
    allowed.database.start()
    time_recovery("tracking server: PostgreSQL restarted", lambda: store.logged_steps(run_id, "train/loss") == {1, 2})
    spool.append(3, {"train/loss": 0.25})
    spool.append_end("FINISHED", "done")
    assert sender.drain(60) is None
    history = store.client.get_metric_history(run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert store.get(run_id).status == "FINISHED"


def test_the_database_itself_serves_as_tracking_store_and_as_study_storage(allowed: TrackingServer) -> None:
    store = TrackingStore.connect(allowed.database.uri(RUNS), "mgmrn/direct")
    run_id = store.create_parent("launch", {"a": "b"})
    assert store.get(run_id).tags["a"] == "b"
    rate = FloatRange(low=1e-4, high=1e-2, log=True)
    config = SearchConfig.model_validate({"base": "cub100", "space": {"optimiser.head_lr": rate}})
    space = Space(SearchFile("x", "x.yaml", config, {"optimiser.head_lr": "x.yaml"}))
    study = Study("s", allowed.database.uri("studies"), config, space)
    trial = study.propose()
    study.report(trial.number, 1, 0.25, [0.25])
    study.end(trial.number, "finished", [0.5])
    again = Study("s", allowed.database.uri("studies"), config, space).records()
    assert [(one.state, one.point, one.values) for one in again] == [("finished", trial.point, (0.5,))]


@pytest.mark.parametrize("place", ["database", "server"])
def test_what_prune_names_goes_from_any_store(place: str, allowed: TrackingServer, tmp_path: Path, asked: Any) -> None:
    uri = allowed.uri if place == "server" else allowed.database.uri(RUNS)
    world = leftovers.make_world(TrackingStore.connect(uri, f"mgmrn/{place}"), tmp_path)
    runs, files = world.active, world.files
    code, answer, said = asked("prune", "--yes", "--tracking-uri", uri, "--storage", "runs")
    assert code == 0, answer
    assert {one["name"] for one in answer["leftovers"]} == set().union(*leftovers.GOING.values())
    assert runs - world.active == leftovers.RUNS
    assert world.files == {path for path in files if not path.startswith(leftovers.PATHS)}
    assert f"mlflow gc --backend-store-uri {'DATABASE' if place == 'server' else 'postgresql'}" in said
    world.store.client.delete_experiment(world.store.experiment_id)


def test_a_database_that_cannot_serve_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    environment = os.environ | {"MGMRN_TRACKING": str(tmp_path / "tracking")}
    for arguments, sentence in (
        ((), "no database is named"),
        (("--port", "5000"), "no database is named"),
        (("postgresql://me:hunter2@127.0.0.1/mlflow",), "holds a password"),
        (("sqlite:///mlflow.db",), "is not like postgresql://"),
        (("postgresql://me@127.0.0.1",), "is not like postgresql://"),
    ):
        done = subprocess.run([SERVE, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
        assert "hunter2" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_ends_it_and_the_next_start_has_the_same_login(server: TrackingServer) -> None:
    password, before = server.password, processes_of(server)
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    server.process.wait(60)
    assert not psutil.wait_procs(before, 10)[1]
    server.start()
    assert server.password == password
