"""What a job server answers, or does not, is told in a sentence; a server of this test's own speaks its protocol."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mgmrn.errors import ResourceError, UserError
from pipeline.cli.app import main
from pipeline.jobs import server as serving
from pipeline.jobs.server import ADDRESS_VARIABLE, AUTH_MODE, TOKEN_SOURCES, JobExistsError, JobServer

LEFT_OUT = {"job_id": None, "driver_info": None, "error_type": None, "message": None}


def details(submission_id: str | None, status: str = "RUNNING", **other: Any) -> dict[str, Any]:
    kind = "SUBMISSION" if submission_id else "DRIVER"
    shown = {"type": kind, "submission_id": submission_id, "status": status, "entrypoint": "python -m pipeline train x"}
    return LEFT_OUT | shown | {"start_time": 2000, "end_time": 5000, "driver_exit_code": 0} | other


class FakeServer(ThreadingHTTPServer):
    """Answers every request with what `answers` holds for its path, or with `status` alone."""

    def __init__(self) -> None:
        self.status = 200
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
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
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
    monkeypatch.setattr(serving, "CONNECT_SECONDS", 0.2)
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
