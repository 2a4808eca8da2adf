"""The job server: its answers and errors, what is sent to it, and a log that is followed. A fake one speaks its protocol."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import pytest

from mgmrn.errors import ResourceError, UserError
from pipeline.cli.app import main
from pipeline.config.files import CONFIGS
from pipeline.jobs import server as serving
from pipeline.jobs.server import ADDRESS_VARIABLE, AUTH_MODE, TOKEN_SOURCES, Job, JobExistsError, JobServer, follow
from pipeline.jobs.submit import CHECKOUT

LEFT_OUT = {"job_id": None, "driver_info": None, "error_type": None, "message": None}


def details(submission_id: str | None, status: str = "RUNNING", **other: Any) -> dict[str, Any]:
    kind = "SUBMISSION" if submission_id else "DRIVER"
    shown = {"type": kind, "submission_id": submission_id, "status": status, "entrypoint": "python -m pipeline train x"}
    return LEFT_OUT | shown | {"start_time": 2000, "end_time": 5000, "driver_exit_code": 0} | other


class FakeServer(ThreadingHTTPServer):
    """Answers every request with what `answers` holds for its path, or with `status` alone."""

    def __init__(self) -> None:
        self.status = 200
        self.packages: list[bytes] = []
        self.answers: dict[str, Any] = {"/api/version": {"version": "4", "ray_version": "2.60.0"}}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path, {})
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        status = self.server.status if not isinstance(answer, str) else 500
        if self.path.startswith("/api/packages/") and not self.server.packages:
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_PUT(self) -> None:
        self.server.packages.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for variable in (AUTH_MODE, *TOKEN_SOURCES):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    server = FakeServer()
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_jobs_are_told_without_their_environment(fake: FakeServer) -> None:
    secret = {"env_vars": {"MLFLOW_TRACKING_PASSWORD": "hunter2"}}
    labels = {"mgmrn.verb": "train", "mgmrn.name": "cub"}
    fake.answers["/api/jobs/"] = [
        details("second", start_time=3000, runtime_env=secret, metadata=labels),
        details(None),
        details("first", "FAILED", driver_exit_code=3),
    ]
    jobs = JobServer.connect(f"{fake.address}/").jobs()
    assert [job.submission_id for job in jobs] == ["first", "second"]
    shown = [job.to_json() for job in jobs]
    assert (shown[0]["exit_code"], shown[0]["verb"], shown[0]["ended"]) == (3, None, 5.0)
    assert (shown[1]["exit_code"], shown[1]["verb"], shown[1]["name"]) == (None, "train", "cub")
    assert "hunter2" not in json.dumps(shown)


def test_the_given_address_counts_whatever_the_environment_says(fake: FakeServer) -> None:
    fake.answers["/api/jobs/"] = []
    assert JobServer.connect(fake.address.removeprefix("http://")).jobs() == []


def test_an_unknown_job_is_a_mistake_that_names_the_nearest(fake: FakeServer) -> None:
    fake.answers["/api/jobs/"] = [details("mgmrn-train-cub-1f0c9a2e")]
    with pytest.raises(UserError, match="did you mean mgmrn-train-cub-1f0c9a2e"):
        JobServer.connect(fake.address).job("mgmrn-train-cub-1f0c9a2f")


def test_a_job_that_somebody_else_has_just_sent(fake: FakeServer) -> None:
    server = JobServer.connect(fake.address)
    fake.answers["/api/jobs/"] = (
        "Traceback …\nValueError: Job with submission_id x-1 already exists. Please use another."
    )
    with pytest.raises(JobExistsError):
        server.submit("x-1", "python -m pipeline train x", {}, {})
    fake.answers["/api/jobs/"] = "Traceback …\nValueError: cannot reach http://me:hunter2@host"
    with pytest.raises(UserError) as caught:
        server.submit("x-1", "python -m pipeline train x", {}, {})
    assert "refuses: ValueError: cannot reach http://me:***@host" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "asks for a token, and none was sent"), (403, "the token is not this cluster's")]
)
def test_without_the_token_the_sentence_says_how_to_give_it(
    fake: FakeServer, capsys: pytest.CaptureFixture[str], status: int, sentence: str
) -> None:
    fake.status = status
    assert main(["status", "--address", fake.address]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert all(
        way in error for way in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN,", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    )


def test_a_token_that_is_there_is_meant_to_be_sent(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serving._use_token()
    assert AUTH_MODE not in serving.os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    serving._use_token()
    assert serving.os.environ[AUTH_MODE] == "token"
    monkeypatch.setenv(AUTH_MODE, "disabled")
    serving._use_token()
    assert serving.os.environ[AUTH_MODE] == "disabled"


def test_a_server_that_is_away_or_silent_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResourceError, match="no job server answers at http://127"):
            JobServer.connect(address)
    with pytest.raises(ResourceError, match="no job server answers"):
        JobServer.connect(address)
    assert main(["stop", "x", "--address", address]) == 3


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://me:hunter2@host"])
def test_another_kind_of_address_is_a_mistake(address: str) -> None:
    with pytest.raises(UserError, match="no address of a job server") as caught:
        JobServer.connect(address)
    assert "hunter2" not in str(caught.value)


UPLOAD_LIMIT = 1536 * 1024
"""Bytes of this checkout as Ray sends it, uncompressed."""


def test_the_code_and_configs_are_sent_and_all_else_stays_behind(fake: FakeServer, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    sent = ("pipeline/a.py", "pipeline/config/configs/x.yaml", "mgmrn/b.py", "my.yaml")
    left = ("mgmrn/out/x", "mgmrn/__pycache__/b.pyc", "tests/t.py", "mlflow.db", "data/y.yaml", ".git/HEAD", ".venv/x")
    for name in (*sent, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("out/\n")
    shutil.copyfile(CHECKOUT / ".rayignore", folder / ".rayignore")
    fake.answers["/api/jobs/"] = {"submission_id": "x", "job_id": "x"}
    JobServer.connect(fake.address).submit("x", "python -m pipeline train x", {"working_dir": str(folder)}, {})
    (package,) = fake.packages
    with ZipFile(io.BytesIO(package)) as packed:
        assert {name for name in packed.namelist() if not name.endswith("/")} == set(sent)


def test_this_checkout_is_a_small_upload_and_runs_from_it(fake: FakeServer, tmp_path: Path) -> None:
    fake.answers["/api/jobs/"] = {"submission_id": "x", "job_id": "x"}
    JobServer.connect(fake.address).submit("x", "python -m pipeline train x", {"working_dir": str(CHECKOUT)}, {})
    (package,) = fake.packages
    assert len(package) < UPLOAD_LIMIT
    with ZipFile(io.BytesIO(package)) as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "job")
    assert {file.relative_to(CHECKOUT).as_posix() for file in CONFIGS.rglob("*.yaml")} <= names
    command = [sys.executable, "-m", "pipeline", "config", "validate", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path / "job", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout) == {"errors": {}}, done.stderr


def job(submission_id: str = "mgmrn-train-cub-1f0c9a2e", status: str = "RUNNING", code: int | None = None) -> Job:
    return Job(submission_id, status, "python -m pipeline train cub", "", 1.0, None, code, {"mgmrn.verb": "train"})


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 137, 1),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("STOPPED", None, 1),
        ("STOPPED", 130, 1),
    ],
)
def test_the_exit_code_is_the_pipelines_own(status: str, driver: int | None, code: int) -> None:
    assert job(status=status, code=driver).exit_code == code


def test_json_shows_no_secret() -> None:
    shown = replace(job(), entrypoint="python -m pipeline train --tracking-uri http://me:word@host").to_json()
    assert "word" not in shown["entrypoint"] and shown["exit_code"] is None


class FlakyServer:
    """A log that is told in pieces over connections that break; None: the server is away at that moment."""

    def __init__(self, connections: list[list[str] | None]) -> None:
        self._connections = connections
        self._asked = 0

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        connection = self._connections[min(self._asked, len(self._connections) - 1)]
        for text in connection or []:
            yield text
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def job(self, submission_id: str) -> Job:
        self._asked += 1
        if self._connections[min(self._asked, len(self._connections)) - 1] is None:
            raise ResourceError("the job server went away")
        return job(submission_id, "SUCCEEDED" if self._asked >= len(self._connections) else "RUNNING", 0)


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_S", 0.0)


@pytest.mark.usefixtures("_no_waiting")
def test_a_log_is_written_once_over_broken_connections() -> None:
    written: list[str] = []
    server: Any = FlakyServer([["a\n", "b\n"], ["a\nb"], None, ["a\nb\nc http://u:p@h\n", "d\n"]])
    ended = follow(server, "x", written.append)
    assert ended.status == "SUCCEEDED"
    assert "".join(written) == "a\nb\nc http://u:***@h\nd\n"


@pytest.mark.usefixtures("_no_waiting")
def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "AWAY_TIMEOUT_S", 0.0)
    server: Any = FlakyServer([None])
    with pytest.raises(ResourceError):
        follow(server, "x", lambda text: None)
