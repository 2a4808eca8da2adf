"""A command is sent once, from the checkout, with its commit, its files and no secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from mgmrn.errors import UserError
from pipeline.cli.job_task import Task
from pipeline.jobs import submit as submitting
from pipeline.jobs.job import Decision, Job
from pipeline.jobs.server import JobExistsError
from pipeline.jobs.submit import CHECKOUT, submit
from pipeline.tracking.environment import SHIPPED_STATE

TASK = Task("train", "cub", ("cub", "--set", "a=1 2"), (), "0" * 64)


class Server:
    """Takes jobs, or says that it has them already."""

    address = "http://host:8265"

    def __init__(self, *earlier: Job) -> None:
        self.known = list(earlier)
        self.sent: list[tuple[str, str, dict[str, Any], Mapping[str, str]]] = []
        self.state: dict[str, Any] = {}
        self.overtaken_by: Job | None = None

    def jobs(self) -> list[Job]:
        return self.known

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: dict[str, Any], labels: Mapping[str, str]
    ) -> None:
        if self.overtaken_by is not None:
            self.known = [replace(self.overtaken_by, submission_id=submission_id)]
            raise JobExistsError("exists")
        with ZipFile(runtime_env["working_dir"]) as packed:
            self.state = json.loads(packed.read(SHIPPED_STATE))
        self.sent.append((submission_id, entrypoint, runtime_env, labels))


def job(submission_id: str, status: str) -> Job:
    return Job(submission_id, status, "", "", 1.0, None, None, {})


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    for name in ("pipeline/a.py", "cluster/runtime_env.yaml", ".rayignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("env_vars: {A: '1'}\n")
    shutil.copyfile(CHECKOUT / ".rayignore", folder / ".rayignore")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    monkeypatch.setattr(submitting, "CHECKOUT", folder)
    monkeypatch.chdir(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def sent_by(server: Any, task: Task = TASK, *, again: bool = False) -> tuple[Decision, str]:
    said: list[str] = []
    return submit(task, server, again=again, say=said.append), "\n".join(said)


def test_code_command_and_commit_are_sent_once(checkout: Path) -> None:
    server, sha = Server(), git(checkout, "rev-parse", "HEAD")
    decision, said = sent_by(server)
    ((submission, entrypoint, runtime_env, labels),) = server.sent
    assert decision == Decision("send", submission, None)
    assert entrypoint == "python -m pipeline train cub --set 'a=1 2'"
    assert runtime_env["env_vars"] == {"A": "1"}
    assert labels == {
        "mgmrn.verb": "train",
        "mgmrn.name": "cub",
        "mgmrn.code_sha": sha,
        "mgmrn.code_dirty": "false",
    }
    assert (server.state["sha"], server.state["dirty"]) == (sha, False)
    assert f"the code is commit {sha[:10]}" in said and "KiB of code" in said

    for status, action in [("RUNNING", "attach"), ("SUCCEEDED", "done")]:
        again, said = sent_by(known := Server(job(submission, status)))
        assert (again, known.sent, said) == (Decision(action, submission, None), [], "")
    assert sent_by(Server(job(submission, "SUCCEEDED")), again=True)[0].submission_id == f"{submission}-2"


def test_changed_files_are_told_and_make_another_job(checkout: Path) -> None:
    clean, _ = sent_by(Server())
    (checkout / "pipeline" / "a.py").write_text("changed")
    (checkout / "pipeline" / "b.py").write_text("new")
    decision, said = sent_by(server := Server())
    assert "warning: 2 files differ from commit" in said
    assert decision.submission_id != clean.submission_id
    assert (
        server.state["dirty"] and "changed" in server.state["diff"] and server.state["untracked"] == ["pipeline/b.py"]
    )
    shutil.rmtree(checkout / ".git")
    assert "no git checkout" in sent_by(Server())[1]


def test_somebody_else_was_faster(checkout: Path) -> None:
    server = Server()
    server.overtaken_by = job("", "PENDING")
    decision, said = sent_by(server)
    assert decision.action == "attach" and "was sent" not in said


def test_what_the_job_would_lack_is_a_mistake(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "my.yaml").write_text("x: 1")
    server = Server()
    assert sent_by(server, replace(TASK, files=("my.yaml",)))[0].action == "send"
    with pytest.raises(UserError, match="not among the files"):
        sent_by(server, replace(TASK, files=("elsewhere/my.yaml",)))
    monkeypatch.chdir(checkout / "pipeline")
    with pytest.raises(UserError, match="from the folder of the checkout"):
        sent_by(server)
    assert len(server.sent) == 1
