"""A submitted command: checked where it is given, sent once, with its code and commit and no secrets, and known to its driver."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobType

from mgmrn.errors import UserError
from pipeline.cli.app import command
from pipeline.cli.job_verbs import read_task
from pipeline.cli.options import check_outlasts_job
from pipeline.interruption import Interruption, raised_signals
from pipeline.job_environment import CODE_STATE, JOB_VARIABLE, in_job, job_settings, job_tags, submission_id
from pipeline.jobs import submit as submitting
from pipeline.jobs.server import JobExistsError
from pipeline.jobs.submit import CHECKOUT, RUNTIME_ENV, Decision, Task, code_digest, decide, read_runtime_env, submit
from pipeline.tracking.environment import GitState, git_state
from pipeline.train.cluster import _ENVIRONMENT, _runtime_env

WANTED = "mgmrn-train-cub-1f0c9a2e"
PLACES = ("--storage", "/shared/runs", "--data-root", "/shared/data", "--tracking-uri", "http://mlflow:5000")
TASK = Task("train", "cub", ("cub", "--set", "a=1 2"), (), "0" * 64)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE", JOB_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def jobs(statuses: dict[str, str]) -> dict[str, JobDetails]:
    return {
        name: JobDetails(type=JobType.SUBMISSION, status=status, entrypoint="") for name, status in statuses.items()
    }


class Server:
    """Takes jobs, or answers that another user has just sent the same job."""

    address = "http://host:8265"

    def __init__(self, known: Mapping[str, JobDetails] | None = None, overtaken: bool = False) -> None:
        self.known, self.overtaken = dict(known or {}), overtaken
        self.sent: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []

    def jobs(self) -> dict[str, JobDetails]:
        return self.known

    def submit(self, name: str, entrypoint: str, runtime_env: dict[str, Any], labels: dict[str, str]) -> None:
        if self.overtaken:
            self.known = jobs({name: "PENDING"})
            raise JobExistsError("exists")
        self.sent.append((name, entrypoint, runtime_env, labels))

    @property
    def state(self) -> GitState:
        return GitState.from_label(self.sent[-1][3][CODE_STATE])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    for name in ("pipeline/a.py", "cluster/runtime_env.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("env_vars: {A: '1'}\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    monkeypatch.setattr(submitting, "CHECKOUT", folder)
    monkeypatch.chdir(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    words = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def sent_by(server: Any, task: Task = TASK, *, again: bool = False) -> tuple[Decision, str]:
    said: list[str] = []
    return submit(task, server, again=again, say=said.append), "\n".join(said)


def test_code_command_and_commit_are_sent_once(checkout: Path) -> None:
    server, sha = Server(), git(checkout, "rev-parse", "HEAD")
    decision, said = sent_by(server)
    ((submission, entrypoint, runtime_env, labels),) = server.sent
    assert decision == Decision("send", submission, None)
    assert entrypoint == "python -m pipeline train cub --set 'a=1 2'"
    assert runtime_env == {"env_vars": {"A": "1"}, "working_dir": str(checkout)}
    shown = {"mgmrn.verb": "train", "mgmrn.name": "cub", "mgmrn.code_sha": sha, "mgmrn.code_dirty": "false"}
    assert labels == shown | {CODE_STATE: labels[CODE_STATE]}
    assert (server.state.sha, server.state.dirty) == (sha, False)
    assert f"the code is commit {sha[:10]}" in said and f"{submission} was sent" in said
    known = Server(jobs({submission: "SUCCEEDED"}))
    assert sent_by(known) == (Decision("done", submission, None), "") and known.sent == []
    assert sent_by(known, again=True)[0].submission_id == f"{submission}-2"
    overtaken, said = sent_by(Server(overtaken=True))
    assert overtaken.action == "attach" and "was sent" not in said


def test_uncommitted_changes_make_another_job_and_are_sent_without_secrets(checkout: Path) -> None:
    clean, _ = sent_by(Server())
    (checkout / "pipeline" / "a.py").write_text("URI = 'postgresql://me:hunter2@db/x'")
    (checkout / "pipeline" / "b.py").write_text("new")
    decision, said = sent_by(server := Server())
    assert "warning: 2 files differ from commit" in said
    assert decision.submission_id != clean.submission_id
    assert server.state.dirty and server.state.untracked == ("pipeline/b.py",)
    assert "hunter2" not in server.state.diff and "me:***@db" in server.state.diff
    (checkout / "pipeline" / "a.py").write_text("".join(secrets.token_hex(40) + "\n" for _ in range(2000)))
    _, said = sent_by(server)
    assert "too long to be kept" in said
    assert server.state.dirty and server.state.diff == ""
    assert len(server.sent[-1][3][CODE_STATE]) < submitting.STATE_LIMIT
    shutil.rmtree(checkout / ".git")
    assert "no git checkout" in sent_by(Server())[1]


def test_a_config_that_the_job_would_lack_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("my.yaml", "data/y.yaml"):
        (checkout / file).parent.mkdir(exist_ok=True)
        (checkout / file).write_text("x: 1")
    server = Server()
    assert sent_by(server, replace(TASK, files=("./pipeline/../my.yaml",)))[0].action == "send"
    for absent in ("data/y.yaml", "elsewhere.yaml", "../elsewhere.yaml", str(checkout / "my.yaml")):
        with pytest.raises(UserError, match="not among the files"):
            sent_by(server, replace(TASK, files=(absent,)))
    monkeypatch.chdir(checkout / "pipeline")
    with pytest.raises(UserError, match="from the folder of the checkout"):
        sent_by(server)
    assert len(server.sent) == 1


def test_the_digest_of_the_code_follows_names_and_contents(checkout: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkout, tmp_path / "copy")
    os.utime(copy / "pipeline" / "a.py", (0, 10**9))
    (copy / "README.md").write_text("no part of a job")
    (copy / "pipeline" / "__pycache__").mkdir()
    (copy / "pipeline" / "__pycache__" / "a.pyc").write_text("compiled")
    assert code_digest(copy) == code_digest(checkout)
    (copy / "pipeline" / "a.py").rename(copy / "pipeline" / "b.py")
    assert code_digest(copy) != code_digest(checkout)


def test_the_runtime_environment_holds_no_secrets(tmp_path: Path) -> None:
    assert read_runtime_env(CHECKOUT / RUNTIME_ENV)["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    file, secret = tmp_path / "env.yaml", "env_vars: {MLFLOW_TRACKING_PASSWORD: hunter2}"
    for text, sentence in {
        secret: "env_vars.MLFLOW_TRACKING_PASSWORD",
        "[1]": "is a mapping",
        "{": "cannot read",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=sentence) as caught:
            read_runtime_env(file)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("known", "again", "decision"),
    [
        ({}, False, Decision("send", WANTED, None)),
        ({"mgmrn-train-cub-00000000": "RUNNING", "raysubmit_1": "RUNNING"}, False, Decision("send", WANTED, None)),
        ({WANTED: "PENDING"}, True, Decision("attach", WANTED, None)),
        ({WANTED: "SUCCEEDED"}, False, Decision("done", WANTED, None)),
        ({WANTED: "SUCCEEDED"}, True, Decision("send", f"{WANTED}-2", "SUCCEEDED")),
        ({f"{WANTED}-2": "STOPPED", WANTED: "FAILED"}, False, Decision("send", f"{WANTED}-3", "STOPPED")),
        ({WANTED: "FAILED", f"{WANTED}-2": "RUNNING"}, False, Decision("attach", f"{WANTED}-2", None)),
        ({WANTED: "FAILED", f"{WANTED}-10": "SUCCEEDED"}, False, Decision("done", f"{WANTED}-10", None)),
        ({WANTED: "FAILED", f"{WANTED}-x": "RUNNING"}, False, Decision("send", f"{WANTED}-2", "FAILED")),
    ],
)
def test_a_command_is_one_job(known: dict[str, str], again: bool, decision: Decision) -> None:
    assert decide(WANTED, jobs(known), again=again) == decision


def task(verb: str, *arguments: str) -> Task:
    return read_task(command.make_context("python -m pipeline", ["submit"]), verb, arguments)


def test_the_verbs_own_arguments_pass_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "my run.yaml"
    file.write_text("extends: [experiment/cub]\n")
    arguments = (str(file), "--set", "loss.scale=5 ", "--seeds", "0,1", "--json", *PLACES)
    read = task("train", *arguments)
    assert (read.arguments, read.files) == (arguments, (str(file),))
    assert "run.yaml' --set 'loss.scale=5 ' --seeds 0,1 --json" in read.entrypoint
    assert read.submission_id("code").startswith("mgmrn-train-my-run-")


def test_the_id_follows_what_is_run_and_not_how_it_is_written() -> None:
    plain = task("train", "cub", *PLACES)
    assert task("train", "cub", "--json", *PLACES).identity == plain.identity
    assert task("train", *PLACES, "cub", "--set", "schedule.epochs=0x1e", "--set", "loss.scale=3").identity == (
        task("train", "cub", "--set", "loss.scale=3", "--set", "schedule.epochs=30", *PLACES).identity
    )
    ids = {plain.submission_id("code"), plain.submission_id("other code")}
    for other in (("--set", "loss.scale=3"), ("--seeds", "1"), ("--force",), ("--tracking-uri", "http://other")):
        ids.add(task("train", "cub", *PLACES, *other).submission_id("code"))
    assert len(ids) == 6
    grid = task("ablate", "ablation/components", *PLACES)
    assert grid.submission_id("c").startswith("mgmrn-ablate-components-") and grid.files == ()
    assert task("ablate", "components", *PLACES).identity == grid.identity
    assert task("ablate", "components", "--benchmarks", "cub", *PLACES).identity != grid.identity
    assert task("search", "cub100", *PLACES).submission_id("c").startswith("mgmrn-search-cub100-")


def test_settings_of_the_environment_here_are_sent_as_options(monkeypatch: pytest.MonkeyPatch) -> None:
    left_to_the_cluster = task("train", "cub", "--storage", "/shared/runs")
    assert left_to_the_cluster.arguments == ("cub", "--storage", "/shared/runs")
    monkeypatch.setenv("MGMRN_DATA_ROOT", "/shared/data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    read = task("train", "cub", "--storage", "/shared/runs")
    assert read.arguments[3:] == ("--tracking-uri", "http://mlflow:5000", "--data-root", "/shared/data")
    assert read.identity == task("train", "cub", *PLACES).identity
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    with pytest.raises(UserError, match="holds a secret") as caught:
        task("train", "cub", "--storage", "/shared/runs")
    assert "hunter2" not in str(caught.value)


def test_places_relative_to_the_job_are_refused() -> None:
    for outlasting in ("/runs", Path("/runs"), "sqlite:////runs/a.db", "http://host:5000", "postgresql://me@host/db"):
        check_outlasts_job(outlasting, "--storage", None)
    for place in ("runs", Path(".mgmrn/runs"), "sqlite:///a.db", "sqlite+pysqlite:///a/b.db?password=secret"):
        with pytest.raises(UserError) as caught:
            check_outlasts_job(place, "--tracking-uri", "MLFLOW_TRACKING_URI")
        instead = "sqlite:////FILE" if "://" in str(place) else "an absolute path"
        assert all(part in str(caught.value) for part in ("--tracking-uri", instead, "MLFLOW_TRACKING_URI"))
        assert "secret" not in str(caught.value)


def test_a_driver_refuses_its_own_folder_at_once(monkeypatch: pytest.MonkeyPatch, typed: Any) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    for option, line in {
        "--storage": "train cub --tracking-uri http://host --data-root /data",
        "--data-root": "ablate components --storage /runs --tracking-uri http://host",
        "--study-storage": "search cub100 --storage /r --tracking-uri http://h --data-root /d",
        "--tracking-uri": "plan components --data-root /data",
    }.items():
        code, _, err = typed(*line.split())
        assert code == 2 and f"goes with the job [{option}]" in err


def test_a_driver_knows_its_job_and_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (in_job(), submission_id(), job_tags(), job_settings()) == (False, None, {}, {})
    for text in ("", "{}", "[1]", "null", '{"metadata": 3, "runtime_env": {"env_vars": null}}'):
        monkeypatch.setenv(JOB_VARIABLE, text)
        assert (in_job(), submission_id(), dict(job_settings())) == (True, None, {})
    diff = "diff --git a/x b/x\n-1\n+2\ndiff --git a/ÿ b/ÿ\n-diff --git\n"
    state = GitState("1f0c9a2e", True, diff, ("new.py", "other.py"))
    metadata = {"job_submission_id": "mgmrn-1", CODE_STATE: state.to_label()}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": metadata, "runtime_env": {"env_vars": {"A": "1"}}}))
    assert (in_job(), submission_id(), job_settings()) == (True, "mgmrn-1", {"A": "1"})
    assert job_tags() == {"mgmrn.ray_submission_id": "mgmrn-1"}
    assert git_state(tmp_path) == state and state.changed_files == 4


def test_hosts_get_the_code_and_the_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    outside = _runtime_env()
    assert outside.keys() == {"env_vars", "working_dir"} and outside["env_vars"] == _ENVIRONMENT
    set_already, *others = _ENVIRONMENT
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {"env_vars": {set_already: "5"}}}))
    assert _runtime_env() == {"env_vars": {name: _ENVIRONMENT[name] for name in others}}


def test_a_driver_hears_an_interrupt_that_its_cluster_would_ignore() -> None:
    """`stop` sends SIGINT, which a job inherits as ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interruption), raised_signals():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
