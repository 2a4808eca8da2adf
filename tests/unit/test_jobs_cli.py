"""What the verbs of jobs print and answer, with a job server that exists in this test alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mgmrn.errors import UserError
from pipeline.cli import job_verbs as cli_jobs
from pipeline.cli.app import main
from pipeline.jobs import submit as submitting
from pipeline.jobs.server import Job, JobServer
from pipeline.jobs.submit import Decision

ID = "mgmrn-train-cub-1f0c9a2e"
PLACES = ["--storage", "/s", "--data-root", "/d", "--tracking-uri", "http://mlflow"]
LABELS = {"mgmrn.verb": "train", "mgmrn.name": "cub", "mgmrn.code_sha": "abc", "mgmrn.code_dirty": "false"}
JSON_KEYS = {
    *("submission_id", "verb", "name", "status", "entrypoint", "started", "ended", "exit_code", "code_sha"),
    "code_dirty",
}


class Server:
    """One job, whose log is two lines, and which then is as `ended` says."""

    address = "http://host:8265"

    def __init__(self) -> None:
        self.known = Job(ID, "RUNNING", "python -m pipeline train cub", "", 100.0, None, None, LABELS)
        self.ended = replace(self.known, status="SUCCEEDED", ended=165.0, driver_exit_code=0)
        self.interrupted = False
        self.stopped: list[str] = []

    def jobs(self) -> list[Job]:
        return [self.known]

    def job(self, submission_id: str) -> Job:
        if submission_id != ID:
            raise UserError("there is no such job")
        return self.known

    def log(self, submission_id: str) -> str:
        return "line http://me:word@host\n"

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        yield "one\n"
        if self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        yield "two\n"
        self.known = self.ended

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        self.known = replace(self.known, status="STOPPED", ended=110.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(JobServer, "connect", lambda address: made)
    monkeypatch.setattr("pipeline.jobs.server.POLL_S", 0.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield made
    signal.signal(signal.SIGINT, before)


def decided(monkeypatch: pytest.MonkeyPatch, decision: Decision) -> None:
    monkeypatch.setattr(submitting, "submit", lambda task, server, *, again, say: decision)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_submit_follows_and_answers_with_the_jobs_code(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    decided(monkeypatch, Decision("send", ID, None))
    server.ended = replace(server.ended, status="SUCCEEDED" if code == 0 else "FAILED", driver_exit_code=code)
    assert main(["submit", "train", "cub", *PLACES]) == code
    assert capsys.readouterr().out == f"one\ntwo\n{ID} is {server.ended.status} after 1 min 05 s\n"


def test_submit_prints_one_object_and_the_log_beside_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decided(monkeypatch, Decision("send", f"{ID}", "FAILED"))
    assert main(["submit", "--json", "train", "cub", *PLACES]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer.keys() == JSON_KEYS | {"action"}
    assert (answer["action"], answer["status"], answer["exit_code"], answer["verb"]) == (
        "send",
        "SUCCEEDED",
        0,
        "train",
    )
    assert "an earlier attempt is FAILED" in printed.err and "one\ntwo\n" in printed.err


def test_without_waiting_nothing_is_followed(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decided(monkeypatch, Decision("attach", ID, None))
    assert main(["submit", "--no-wait", "train", "cub", *PLACES]) == 0
    assert capsys.readouterr().out == f"{ID} is on the cluster already; nothing was sent\n{ID} is RUNNING\n"
    server.known = server.ended
    decided(monkeypatch, Decision("done", ID, None))
    assert main(["submit", "train", "cub", *PLACES]) == 0
    assert f"{ID} has succeeded already; nothing was sent" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["submit", "train", "cub", *PLACES], ["logs", ID, "--follow"]])
def test_ctrl_c_leaves_the_job_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    decided(monkeypatch, Decision("send", ID, None))
    server.interrupted = True
    assert main(command) == 130
    printed = capsys.readouterr()
    assert printed.out == "one\n" and server.stopped == []
    assert f"`logs {ID} --follow` comes back to it, `stop {ID}` ends it" in printed.err


def test_status_lists_jobs_and_the_runs_that_they_lead(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.known = replace(server.ended, status="FAILED", driver_exit_code=3)
    assert main(["status"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "verb", "status", "exit", "started", "took", "run"]
    assert row.split()[:4] == [ID, "train", "FAILED", "3"] and row.endswith("1 min 05 s  –")
    monkeypatch.setattr(cli_jobs, "_launches", lambda uri: {ID: f"run in {uri}"})
    assert main(["status", ID, "--json", "--tracking-uri", "http://mlflow"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["jobs"]
    assert shown.keys() == JSON_KEYS | {"run_id"} and shown["run_id"] == "run in http://mlflow"
    assert main(["status", "other"]) == 2


def test_status_does_not_need_the_tracking_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--tracking-uri", "http://me:word@127.0.0.1:9"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["jobs"][0]["run_id"] is None
    assert "which runs the jobs lead is not known" in printed.err and "word" not in printed.err


def test_logs_print_what_there_is_without_secrets(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", ID]) == 0
    assert capsys.readouterr().out == "line http://me:***@host\n"
    assert main(["logs", ID, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log"] == "line http://me:***@host\n"


def test_stop_waits_for_the_end(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", ID]) == 0
    assert capsys.readouterr().out == f"{ID} is STOPPED\n"
    assert main(["stop", ID]) == 0
    assert capsys.readouterr().out == f"{ID} is over already: STOPPED\n"
    assert server.stopped == [ID]


def test_a_job_that_does_not_end_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_jobs, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(server, "stop", lambda submission_id: None)
    assert main(["stop", ID]) == 1
    assert capsys.readouterr().out == f"{ID} is RUNNING\n"


def test_a_driver_that_never_started_has_its_reason_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decided(monkeypatch, Decision("send", ID, None))
    other: Any = {"status": "FAILED", "driver_exit_code": None, "message": "no host for http://me:word@host"}
    server.known = server.ended = replace(server.ended, **other)
    assert main(["submit", "train", "cub", *PLACES]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "no host for http://me:***@host"
