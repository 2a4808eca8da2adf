"""The tracking server: who is let in, what it keeps, what it refuses, and how it ends."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from cluster.tracking.credentials import credentials
from cluster.tracking.mlflow_server import MARK
from cluster.tracking.server import RUNS, TrackingServer, tracking_server
from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.ports import free_port
from pipeline.search.config import FloatRange, SearchConfig, SearchFile
from pipeline.search.space import Space
from pipeline.search.study import Study
from pipeline.tracking.connection import PASSWORD_VARIABLE, USERNAME_VARIABLE
from pipeline.tracking.spool import Sender, Spool
from pipeline.tracking.store import TrackingStore
from tests.cluster.tracking import server_for_tests
from tests.ray.command import REPOSITORY, wait_until
from tests.recovery import time_recovery

pytestmark = pytest.mark.cluster

HEAD_LR = "optimiser.head_lr"


@pytest.fixture(scope="module")
def server() -> Iterator[TrackingServer]:
    with server_for_tests() as running:
        yield running


@pytest.fixture
def allowed(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    for name, value in (server.environment | server.database.environment).items():
        monkeypatch.setenv(name, value)
    return server


def folder_of(server: TrackingServer) -> Path:
    return server.credentials.client_file.parent


def test_secrets_stand_in_files_of_their_owner_alone_and_nowhere_else(server: TrackingServer) -> None:
    folder, secrets = folder_of(server), server.credentials
    words = (secrets.password, secrets.database_password, secrets.flask_key)
    assert all(word not in repr(server) for word in words)
    holding = {
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(word in path.read_text(errors="replace") for word in words)
    }
    assert holding == {"credentials.env", "pgpass", "flask.key"}
    assert {(folder / name).stat().st_mode & 0o777 for name in holding} == {0o600}
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("basic-auth" in command for command in commands)
    assert not any(word in command for command in commands for word in words), "every user can read a command line"
    script = f". {secrets.client_file} && printenv {PASSWORD_VARIABLE}"
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == secrets.password


def test_both_servers_listen_on_loopback_alone(server: TrackingServer) -> None:
    processes = psutil.Process().children(recursive=True)
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and all(ip_address(address).is_loopback for address in listening), listening


def test_whoever_has_no_password_is_told_so_in_one_sentence(
    server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(USERNAME_VARIABLE, raising=False)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with pytest.raises(TrackingError, match=f"asks for credentials .*{PASSWORD_VARIABLE}"):
        TrackingStore.connect(server.uri)
    monkeypatch.setenv(USERNAME_VARIABLE, "admin")
    monkeypatch.setenv(PASSWORD_VARIABLE, "guessed-wrongly")
    with pytest.raises(TrackingError, match="refuses these credentials") as caught:
        TrackingStore.connect(server.uri)
    assert "guessed-wrongly" not in str(caught.value)


def test_runs_outlive_a_restart_of_postgresql_under_the_living_server(allowed: TrackingServer, tmp_path: Path) -> None:
    store = TrackingStore.connect(allowed.uri, "mgmrn/restart")
    run_id = store.create_parent("launch", {"mgmrn.kind": "launch"})
    spool = Spool(tmp_path / "run" / "spool.jsonl")
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


def test_artifacts_go_through_the_server_and_cannot_leave_their_folder(allowed: TrackingServer, tmp_path: Path) -> None:
    store = TrackingStore.connect(allowed.uri, "mgmrn/artifacts")
    run_id = store.create_parent("launch", {})
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "curve.csv").write_text("gamma\n")
    store.log_artifacts(run_id, tmp_path)
    assert store.read_text(run_id, "eval/curve.csv") == "gamma\n"
    assert list((folder_of(allowed) / "artifacts").rglob("curve.csv"))
    for name in ("../../escaped.txt", "..%2F..%2Fescaped.txt", "%2E%2E/%2E%2E/escaped.txt", "/escaped.txt"):
        assert put(allowed, f"/api/2.0/mlflow-artifacts/artifacts/{name}") >= 400, name
    quoted = urllib.parse.quote("../../../credentials.env", safe="")
    assert get(allowed, f"/get-artifact?run_uuid={run_id}&path={quoted}") >= 400
    assert get(allowed, f"/api/2.0/mlflow-artifacts/artifacts/{quoted}") >= 400
    assert not list(folder_of(allowed).rglob("escaped.txt"))
    with pytest.raises(UserError, match="no id of a run"):
        store.get("../../credentials.env")
    with pytest.raises(TrackingError, match="not found"):
        store.get("0" * 32)


def put(server: TrackingServer, path: str) -> int:
    return status(server, urllib.request.Request(server.uri + path, data=b"x", method="PUT"))


def get(server: TrackingServer, path: str) -> int:
    return status(server, urllib.request.Request(server.uri + path))


def status(server: TrackingServer, request: urllib.request.Request) -> int:
    """The server's answer to the admin."""
    word = base64.b64encode(":".join(server.environment.values()).encode()).decode()
    request.add_header("Authorization", f"Basic {word}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_database_itself_serves_as_tracking_store_and_as_study_storage(allowed: TrackingServer) -> None:
    store = TrackingStore.connect(allowed.database.uri(RUNS), "mgmrn/direct")
    run_id = store.create_parent("launch", {"a": "b"})
    assert store.get(run_id).tags["a"] == "b"
    config = SearchConfig.model_validate(
        {"base": "cub100", "space": {HEAD_LR: FloatRange(low=1e-4, high=1e-2, log=True)}}
    )
    space = Space(SearchFile("x", "x.yaml", config, {HEAD_LR: "x.yaml"}))
    study = Study("s", allowed.study_storage, config, space)
    trial = study.propose()
    study.report(trial.number, 1, 0.25, [0.25])
    study.finish(trial.number, [0.5])
    again = Study("s", allowed.study_storage, config, space).records()
    assert [(one.state, one.point, one.values) for one in again] == [("finished", trial.point, (0.5,))]


def test_a_second_server_from_the_folder_and_a_taken_port_are_refused(server: TrackingServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already runs from this folder"), tracking_server(folder_of(server)):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"nothing can listen at 127.0.0.1:{port}"),
            tracking_server(tmp_path / "other", database_port=port),
        ):
            pass


def test_what_a_killed_command_left_is_ended_by_the_next_which_ends_without_leftovers(server: TrackingServer) -> None:
    """Runs in a copy of the running server's folder, whose tables and data folder need not be made again."""
    folder = folder_of(server).with_name(f"{folder_of(server).name}-command")
    # What a crash leaves on disk is what PostgreSQL recovers from; `cp -a` of a running folder is no less.
    subprocess.run(["cp", "-a", str(folder_of(server)), str(folder)], check=True)
    try:
        crashed, ports = start(folder)
        left = of_folder(folder)
        crashed.kill()
        crashed.wait()
        assert {process.pid for process in of_folder(folder)} == {process.pid for process in left} != set()
        again, _ = start(folder, ports)
        assert not any(process.is_running() for process in left)
        text = (folder / "said.txt").read_text()
        assert str(folder / "credentials.env") in text
        assert PASSWORD_VARIABLE in text and USERNAME_VARIABLE in text
        assert credentials(folder).password not in text
        again.send_signal(signal.SIGINT)
        assert again.wait(60) == 0
        assert not of_folder(folder)
    finally:
        for process in of_folder(folder):
            process.kill()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def start(folder: Path, ports: tuple[int, int] | None = None) -> tuple[subprocess.Popen[bytes], tuple[int, int]]:
    """`python -m cluster.tracking` in a folder, until it says where it is; with the ports that it was given."""
    ports = ports or (free_port(), free_port())
    said = folder / "said.txt"
    said.write_text("")
    options = {"--folder": str(folder), "--port": str(ports[0]), "--database-port": str(ports[1])}
    command = [sys.executable, "-m", "cluster.tracking", *(part for pair in options.items() for part in pair)]
    with said.open("ab") as output:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    def is_up() -> bool:
        assert process.poll() is None, said.read_text()
        return f"http://127.0.0.1:{ports[0]}" in said.read_text()

    wait_until(is_up, "the command says where the server is", 240)
    return process, ports


def of_folder(folder: Path) -> list[psutil.Process]:
    """The servers of a folder that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(folder)
            if process.status() != psutil.STATUS_ZOMBIE and (marked or process.cwd() == str(folder / "postgresql")):
                found.append(process)
        except psutil.Error:
            continue
    return found
