"""The verbs of jobs and the job server's answers, with a server that speaks Ray's protocol and one that exists in this test alone."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from mgmrn.errors import ResourceError, UserError
from pipeline.cli import job_verbs
from pipeline.cli.app import main
from pipeline.config.files import CONFIGS
from pipeline.jobs import server as serving
from pipeline.jobs import submit as submitting
from pipeline.jobs.server import JobExistsError, JobServer, exit_code, follow, job_to_json
from pipeline.jobs.submit import CHECKOUT, Decision

ID = "mgmrn-train-cub-1f0c9a2e"
SUBMIT = ["submit", "train", "cub", "--storage", "/s", "--data-root", "/d", "--tracking-uri", "http://mlflow"]
LABELS = {"mgmrn.verb": "train", "mgmrn.name": "cub", "mgmrn.code_sha": "abc", "mgmrn.code_dirty": "false"}
JSON_KEYS = {"submission_id", "verb", "name", "status", "entrypoint", "started", "ended", "exit_code"}
JSON_KEYS |= {"code_sha", "code_dirty"}


def job(status: str = "RUNNING", code: int | None = None, submission_id: str = ID, **others: Any) -> JobDetails:
    end = 165_000 if JobStatus(status).is_terminal() else None
    fields = {"submission_id": submission_id, "status": status, "driver_exit_code": code, "start_time": 100_000}
    fields |= {"end_time": end, "entrypoint": "python -m pipeline train cub", "metadata": LABELS}
    return JobDetails(type=JobType.SUBMISSION, **(fields | others))


class Server:
    """One job with a log of two lines, which ends as `ended` when the log has been read."""

    address = "http://host:8265"

    def __init__(self) -> None:
        self.known, self.ended = job(), job("SUCCEEDED", 0)
        self.stopped: list[str] = []

    def jobs(self) -> dict[str, JobDetails]:
        return {ID: self.known}

    def job(self, submission_id: str) -> JobDetails:
        if submission_id != ID:
            raise UserError("there is no such job")
        return self.known

    def log(self, submission_id: str) -> str:
        return "line http://me:word@host\n"

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        yield "one\n"
        yield "two\n"
        self.known = self.ended

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        self.known = job("STOPPED")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(JobServer, "connect", lambda address: made)
    monkeypatch.setattr(serving, "POLL_S", 0.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    decided(monkeypatch, "send")
    return made


def decided(monkeypatch: pytest.MonkeyPatch, action: Any, earlier: str | None = None) -> None:
    monkeypatch.setattr(submitting, "submit", lambda task, server, *, again, say: Decision(action, ID, earlier))


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_submit_follows_and_answers_with_the_jobs_code(server: Server, typed: Any, code: int) -> None:
    server.ended = job("FAILED" if code else "SUCCEEDED", code)
    assert typed(*SUBMIT) == (code, f"one\ntwo\n{ID} is {server.ended.status} after 1 min 05 s\n", "")
    server.known = server.ended = job("FAILED", message="no host for http://me:word@host")
    code, out, _ = typed(*SUBMIT)
    assert (code, out.splitlines()[-1]) == (1, "no host for http://me:***@host"), "the driver did not start"


def test_submit_prints_one_object_and_the_log_beside_it(
    server: Server, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, "send", "FAILED")
    code, out, _ = typed(*SUBMIT, "--json")
    assert code == 0 and "{" not in out, "an option of the verb is no option of submit"
    server.known = job()
    code, out, err = typed("submit", "--json", *SUBMIT[1:])
    answer = json.loads(out)
    assert code == 0 and answer.keys() == JSON_KEYS | {"action"}
    assert answer | {"action": "send", "status": "SUCCEEDED", "exit_code": 0, "verb": "train", "ended": 165} == answer
    assert "an earlier attempt is FAILED" in err and "one\ntwo\n" in err


def test_without_waiting_the_log_is_not_followed(server: Server, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, "attach")
    said = f"{ID} is on the cluster already; nothing was sent\n{ID} is RUNNING\n"
    assert typed("submit", "--no-wait", *SUBMIT[1:]) == (0, said, "")
    server.known = server.ended
    decided(monkeypatch, "done")
    assert f"{ID} has succeeded already; nothing was sent" in typed(*SUBMIT)[1]


def test_status_lists_jobs_and_their_runs(server: Server, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.known = job("FAILED", 3)
    header, row = typed("status")[1].splitlines()
    assert header.split() == ["id", "verb", "status", "exit", "started", "took", "run"]
    assert row.split()[:4] == [ID, "train", "FAILED", "3"] and row.endswith("1 min 05 s  –")
    code, out, err = typed("status", "--json", "--tracking-uri", "http://me:word@127.0.0.1:9")
    assert code == 0 and json.loads(out)["jobs"][0]["run_id"] is None
    assert "the runs of the jobs are not known" in err and "word" not in err
    monkeypatch.setattr(job_verbs, "_launches", lambda uri: {ID: f"run in {uri}"})
    (shown,) = json.loads(typed("status", ID, "--json", "--tracking-uri", "http://mlflow")[1])["jobs"]
    assert shown.keys() == JSON_KEYS | {"run_id"} and shown["run_id"] == "run in http://mlflow"
    assert typed("status", "other")[0] == 2


def test_logs_are_printed_without_secrets_and_stop_waits_for_the_end(
    server: Server, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed("logs", ID) == (0, "line http://me:***@host\n", "")
    assert json.loads(typed("logs", ID, "--json")[1])["log"] == "line http://me:***@host\n"
    assert typed("stop", ID) == (0, f"{ID} is STOPPED\n", "")
    assert typed("stop", ID) == (0, f"{ID} is over already: STOPPED\n", "")
    assert server.stopped == [ID]
    server.known = job()
    monkeypatch.setattr(job_verbs, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(server, "stop", lambda submission_id: None)
    assert typed("stop", ID) == (1, f"{ID} is RUNNING\n", "")


def test_the_exit_code_is_one_of_the_pipeline() -> None:
    ended = {("SUCCEEDED", 0): 0, ("FAILED", 2): 2, ("FAILED", 137): 1, ("FAILED", 0): 1, ("STOPPED", 130): 1}
    assert {(status, code): exit_code(job(status, code)) for status, code in ended} == ended


class FlakyServer:
    """A log in pieces over connections that break; None: the server is away at that moment."""

    def __init__(self, connections: list[list[str] | None]) -> None:
        self._connections = connections
        self._asked = 0

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        for text in self._connections[min(self._asked, len(self._connections) - 1)] or []:
            yield text
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def job(self, submission_id: str) -> JobDetails:
        self._asked += 1
        if self._connections[min(self._asked, len(self._connections)) - 1] is None:
            raise ResourceError("the job server went away")
        return job("SUCCEEDED" if self._asked >= len(self._connections) else "RUNNING", 0)


def test_a_log_is_written_once_over_broken_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_S", 0.0)
    written: list[str] = []
    flaky: Any = FlakyServer([["a\n", "b\n"], ["a\nb"], None, ["a\nb\nc http://u:p@h\n", "d\n"]])
    assert follow(flaky, "x", written.append).status == "SUCCEEDED"
    assert "".join(written) == "a\nb\nc http://u:***@h\nd\n"
    monkeypatch.setattr(serving, "AWAY_TIMEOUT_S", 0.0)
    away: Any = FlakyServer([None])
    with pytest.raises(ResourceError):
        follow(away, "x", written.append)


class FakeServer(ThreadingHTTPServer):
    """Answers every request with what `answers` holds for its path, an error text with status 500, or with `status` alone."""

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
        absent = self.command == "GET" and self.path.startswith("/api/packages/") and not self.server.packages
        self.send_response(404 if absent else 500 if isinstance(answer, str) else self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.server.packages.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(serving.ADDRESS_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for variable in (serving.AUTH_MODE, *serving.TOKEN_SOURCES):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    with FakeServer() as made:
        Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def test_jobs_are_listed_without_their_environment(fake: FakeServer) -> None:
    secret = {"env_vars": {"MLFLOW_TRACKING_PASSWORD": "hunter2"}}
    entrypoint = "python -m pipeline train --tracking-uri http://me:hunter2@host"
    listed = [
        job("RUNNING", 0, "second", start_time=3000, runtime_env=secret, entrypoint=entrypoint),
        job("RUNNING", submission_id="", metadata=None),
        job("FAILED", 3, "first", start_time=2000, end_time=5000, metadata=None),
    ]
    fake.answers["/api/jobs/"] = [json.loads(one.model_dump_json()) for one in listed]
    server = JobServer.connect(fake.address.removeprefix("http://"))
    first, second = [job_to_json(one) for one in server.jobs().values()]
    assert (first["submission_id"], first["exit_code"], first["verb"], first["ended"]) == ("first", 3, None, 5.0)
    assert (second["exit_code"], second["verb"], second["name"]) == (None, "train", "cub")
    assert "hunter2" not in json.dumps(second)
    with pytest.raises(UserError, match="did you mean second"):
        server.job("secnd")


def test_what_the_server_refuses_is_one_sentence_without_secrets(fake: FakeServer) -> None:
    server = JobServer.connect(f"{fake.address}/")
    fake.answers["/api/jobs/"] = "Traceback …\nValueError: Job with submission_id x-1 already exists. Use another."
    with pytest.raises(JobExistsError):
        server.submit("x-1", "python -m pipeline train x", {}, {})
    fake.answers["/api/jobs/"] = "Traceback …\nValueError: cannot reach http://me:hunter2@host"
    with pytest.raises(UserError, match=r"refuses: ValueError: cannot reach http://me:\*\*\*@host"):
        server.submit("x-1", "python -m pipeline train x", {}, {})


def test_without_the_token_the_sentence_says_how_to_give_it(fake: FakeServer) -> None:
    sentences = {401: "the cluster asks for a token, and none was sent", 403: "the token is not this cluster's"}
    for fake.status, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence) as caught:
            JobServer.connect(fake.address)
        ways = ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN,", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
        assert all(way in caught.value.hint for way in ways)


def test_a_token_is_sent_where_there_is_one(fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serving._use_token()
    assert serving.AUTH_MODE not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    serving._use_token()
    assert os.environ[serving.AUTH_MODE] == "token"
    monkeypatch.setenv(serving.AUTH_MODE, "disabled")
    serving._use_token()
    assert os.environ[serving.AUTH_MODE] == "disabled"


def test_a_server_that_is_away_or_silent_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResourceError, match="no job server answers at http://127"):
            JobServer.connect(address)
    assert main(["stop", "x", "--address", address]) == 3
    for wrong in ("ray://head:10001", "ftp://me:hunter2@host"):
        with pytest.raises(UserError, match="no address of a job server") as caught:
            JobServer.connect(wrong)
        assert "hunter2" not in str(caught.value)


def sent_files(fake: FakeServer, folder: Path) -> ZipFile:
    """Files of a checkout that Ray uploads, uncompressed."""
    fake.answers["/api/jobs/"] = {"submission_id": "x", "job_id": "x"}
    JobServer.connect(fake.address).submit("x", "python -m pipeline train x", {"working_dir": str(folder)}, {})
    (package,) = fake.packages
    assert len(package) < 1536 * 1024
    return ZipFile(io.BytesIO(package))


def test_the_code_and_configs_are_sent_and_all_else_stays_behind(fake: FakeServer, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    sent = ("pipeline/a.py", "pipeline/config/configs/x.yaml", "mgmrn/b.py", "my.yaml")
    left = ("mgmrn/out/x", "mgmrn/__pycache__/b.pyc", "tests/t.py", "mlflow.db", "data/y.yaml", ".git/HEAD", ".venv/x")
    for name in (*sent, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("out/\n")
    shutil.copyfile(CHECKOUT / ".rayignore", folder / ".rayignore")
    assert {name for name in sent_files(fake, folder).namelist() if not name.endswith("/")} == set(sent)


def test_this_checkout_is_a_small_upload_and_runs_from_it(fake: FakeServer, tmp_path: Path) -> None:
    packed = sent_files(fake, CHECKOUT)
    assert {file.relative_to(CHECKOUT).as_posix() for file in CONFIGS.rglob("*.yaml")} <= set(packed.namelist())
    packed.extractall(tmp_path / "job")
    words = [sys.executable, "-m", "pipeline", "config", "validate", "cub", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=tmp_path / "job", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout) == {"errors": {}}, done.stderr
