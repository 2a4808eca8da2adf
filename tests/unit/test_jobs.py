"""Which job a command means, what its exit code is, and how its log is followed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from mgmrn.errors import ResourceError
from pipeline.jobs import follow as following
from pipeline.jobs.follow import follow
from pipeline.jobs.job import Decision, Job, decide

WANTED = "mgmrn-train-cub-1f0c9a2e"


def job(submission_id: str = WANTED, status: str = "RUNNING", code: int | None = None) -> Job:
    return Job(submission_id, status, "python -m pipeline train cub", "", 1.0, None, code, {"mgmrn.verb": "train"})


@pytest.mark.parametrize(
    ("jobs", "again", "decision"),
    [
        ([], False, Decision("send", WANTED, None)),
        ([job("mgmrn-train-cub-00000000"), job("raysubmit_1")], False, Decision("send", WANTED, None)),
        ([job(status="PENDING")], False, Decision("attach", WANTED, None)),
        ([job(status="RUNNING")], True, Decision("attach", WANTED, None)),
        ([job(status="SUCCEEDED")], False, Decision("done", WANTED, None)),
        ([job(status="SUCCEEDED")], True, Decision("send", f"{WANTED}-2", "SUCCEEDED")),
        ([job(status="FAILED")], False, Decision("send", f"{WANTED}-2", "FAILED")),
        ([job(f"{WANTED}-2", "STOPPED"), job(status="FAILED")], False, Decision("send", f"{WANTED}-3", "STOPPED")),
        ([job(status="FAILED"), job(f"{WANTED}-2")], False, Decision("attach", f"{WANTED}-2", None)),
        ([job(status="FAILED"), job(f"{WANTED}-10", "SUCCEEDED")], False, Decision("done", f"{WANTED}-10", None)),
        ([job(status="FAILED"), job(f"{WANTED}-x", "RUNNING")], False, Decision("send", f"{WANTED}-2", "FAILED")),
    ],
)
def test_a_command_is_one_job(jobs: list[Job], again: bool, decision: Decision) -> None:
    assert decide(WANTED, jobs, again=again) == decision


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
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("_no_waiting")
def test_a_log_is_written_once_over_broken_connections() -> None:
    written: list[str] = []
    server: Any = FlakyServer([["a\n", "b\n"], ["a\nb"], None, ["a\nb\nc http://u:p@h\n", "d\n"]])
    ended = follow(server, "x", written.append)
    assert ended.status == "SUCCEEDED"
    assert "".join(written) == "a\nb\nc http://u:***@h\nd\n"


@pytest.mark.usefixtures("_no_waiting")
def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.0)
    server: Any = FlakyServer([None])
    with pytest.raises(ResourceError):
        follow(server, "x", lambda text: None)
