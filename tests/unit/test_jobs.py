"""Jobs: what is sent and known of a command, the verbs, and the answers of a server that speaks Ray's protocol."""

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from mgmrn.errors import ResourceError, UserError
from pipeline.cli import job_verbs
from pipeline.cli.app import command, main
from pipeline.cli.job_verbs import read_task
from pipeline.config.files import CONFIGS
from pipeline.job_environment import CODE_STATE, JOB_VARIABLE, SUBMISSION_TAG, in_job, job_settings, job_tags
from pipeline.jobs import server as serving
from pipeline.jobs import submit as submitting
from pipeline.jobs.server import JobExistsError, JobServer, exit_code, follow, job_to_json
from pipeline.jobs.submit import REPOSITORY, RUNTIME_ENV, Decision, Task, decide, read_runtime_env, submit
from pipeline.tracking.environment import GitState, git_state
from pipeline.train.cluster import _ENVIRONMENT, _runtime_env

ID = "mgmrn-train-cub-1f0c9a2e"
LABELS = {"mgmrn.verb": "train", "mgmrn.name": "cub", "mgmrn.code_sha": "abc", "mgmrn.code_dirty": "false"}
JSON_KEYS = {"submission_id", "verb", "name", "status", "entrypoint", "started", "ended", "exit_code"}
JSON_KEYS |= {"code_sha", "code_dirty", "run_id"}


def job(status: str = "RUNNING", code: int | None = None, submission_id: str = ID, **others: Any) -> JobDetails:
    end = 165_000 if JobStatus(status).is_terminal() else None
    fields = {"submission_id": submission_id, "status": status, "driver_exit_code": code, "start_time": 100_000}
    fields |= {"end_time": end, "entrypoint": "python -m pipeline train cub", "metadata": LABELS}
    return JobDetails(type=JobType.SUBMISSION, **(fields | others))


def test_a_job_answers_with_the_code_of_its_driver_or_one() -> None:
    ends = [("SUCCEEDED", 0), ("FAILED", 1), ("FAILED", 2), ("FAILED", 3)]
    assert [exit_code(job(*end)) for end in ends] == [0, 1, 2, 3]
    ends = [("FAILED", 137), ("FAILED", 0), ("FAILED", None), ("STOPPED", 130)]
    assert {exit_code(job(*end)) for end in ends} == {1}


def test_logs_hide_secrets_and_stop_says_what_became_of_the_job(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = "line http://me:word@host\n"
    server = SimpleNamespace(log=lambda name: log, job=lambda name: job(), stop=lambda name: None)
    monkeypatch.setattr(JobServer, "connect", lambda address: server)
    monkeypatch.setattr(job_verbs, "STOP_SECONDS", 0.0)
    assert typed("logs", ID) == (0, "line http://me:***@host\n", "")
    assert json.loads(typed("logs", ID, "--json")[1])["log"] == "line http://me:***@host\n"
    assert typed("stop", ID) == (1, f"{ID} is RUNNING\n", "")
    server.job = lambda name: job("STOPPED")
    assert typed("stop", ID) == (0, f"{ID} is over already: STOPPED\n", "")


def test_status_lists_jobs_and_their_runs(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = job("FAILED", 3)
    server = SimpleNamespace(jobs=lambda: {ID: failed}, address="http://host:8265")
    monkeypatch.setattr(JobServer, "connect", lambda address: server)
    header, row = typed("status")[1].splitlines()
    assert header.split() == ["id", "verb", "status", "exit", "started", "took", "run"]
    assert row.split()[:4] == [ID, "train", "FAILED", "3"] and row.endswith("1 min 05 s  –")
    code, out, err = typed("status", "--json", "--tracking-uri", "http://me:word@127.0.0.1:9")
    (shown,) = json.loads(out)["jobs"]
    assert (code, shown.keys(), shown["run_id"]) == (0, JSON_KEYS, None)
    assert "the runs of the jobs are not known" in err and "word" not in err


class FlakyServer:
    """A log in pieces over connections that break; None: the server is away at that moment, at the end for good."""

    def __init__(self, *connections: list[str] | None) -> None:
        self._left = list(connections)

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        for text in self._left[0] or []:
            yield text
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def job(self, submission_id: str) -> JobDetails:
        now = self._left.pop(0)
        self._left = self._left or [None]
        if now is None:
            raise ResourceError("the job server went away")
        return job("SUCCEEDED" if self._left == [None] else "RUNNING", 0)


def test_a_log_is_written_once_over_broken_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_S", 0.0)
    written: list[str] = []
    flaky: Any = FlakyServer(["a\n", "b\n"], ["a\nb"], None, ["a\nb\nc http://u:p@h\n", "d\n"])
    assert follow(flaky, "x", written.append).status == "SUCCEEDED"
    assert "".join(written) == "a\nb\nc http://u:***@h\nd\n"
    monkeypatch.setattr(serving, "AWAY_TIMEOUT_S", 0.0)
    with pytest.raises(ResourceError):
        follow(FlakyServer(None), "x", written.append)  # type: ignore[arg-type]


class FakeServer(ThreadingHTTPServer):
    """Answers every request with what `answers` holds for its path, an error text with status 500; it has no package."""

    def __init__(self) -> None:
        self.received: dict[str, bytes] = {}
        self.answers: dict[str, Any] = {"/api/version": {"version": "4", "ray_version": "2.60.0"}}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path, {})
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        absent = self.command == "GET" and self.path.startswith("/api/packages/")
        self.send_response(404 if absent else 500 if isinstance(answer, str) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.server.received[self.command] = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_POST = do_PUT

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


def sent_files(fake: FakeServer, folder: Path) -> set[str]:
    fake.answers["/api/jobs/"] = {"submission_id": "x", "job_id": "x"}
    JobServer.connect(fake.address).submit("x", "python -m pipeline train x", {"working_dir": str(folder)}, {})
    package = fake.received["PUT"]
    assert len(package) < 1536 * 1024
    return {name for name in ZipFile(io.BytesIO(package)).namelist() if not name.endswith("/")}


def test_the_code_and_configs_are_sent_and_all_else_stays_behind(fake: FakeServer, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    sent = ("pipeline/a.py", "pipeline/config/configs/x.yaml", "mgmrn/b.py", "my.yaml")
    left = ("mgmrn/out/x", "mgmrn/__pycache__/b.pyc", "tests/t.py", "mlflow.db", "data/y.yaml", ".git/HEAD", ".venv/x")
    for name in (*sent, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("out/\n")
    shutil.copyfile(REPOSITORY / ".rayignore", folder / ".rayignore")
    assert sent_files(fake, folder) == set(sent)
    assert {file.relative_to(REPOSITORY).as_posix() for file in CONFIGS.rglob("*.yaml")} <= sent_files(fake, REPOSITORY)


PLACES = ("--storage", "/shared/runs", "--data-root", "/shared/data", "--tracking-uri", "http://mlflow:5000")
TASK = Task("train", "cub", ("cub", "--set", "a=1 2"), (), "0" * 64)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE", JOB_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


class Inbox:
    """Takes jobs, or answers that another user has just sent the same job."""

    address = "http://host:8265"

    def __init__(self, known: Mapping[str, str] | None = None, overtaken: bool = False) -> None:
        self.known, self.overtaken = dict(known or {}), overtaken
        self.sent: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []

    def jobs(self) -> dict[str, JobDetails]:
        return {name: job(status) for name, status in self.known.items()}

    def submit(self, name: str, entrypoint: str, runtime_env: dict[str, Any], labels: dict[str, str]) -> None:
        if self.overtaken:
            self.known = {name: "PENDING"}
            raise JobExistsError("exists")
        self.sent.append((name, entrypoint, runtime_env, labels))

    @property
    def state(self) -> GitState:
        """State of the code that the last job was sent with."""
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
    monkeypatch.setattr(submitting, "REPOSITORY", folder)
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
    server, sha = Inbox(), git(checkout, "rev-parse", "HEAD")
    decision, said = sent_by(server)
    ((submission, entrypoint, runtime_env, labels),) = server.sent
    assert decision == Decision("send", submission, None)
    assert entrypoint == "python -m pipeline train cub --set 'a=1 2'"
    assert runtime_env == {"env_vars": {"A": "1"}, "working_dir": str(checkout)}
    shown = {"mgmrn.verb": "train", "mgmrn.name": "cub", "mgmrn.code_sha": sha, "mgmrn.code_dirty": "false"}
    assert labels == shown | {CODE_STATE: labels[CODE_STATE]}
    assert (server.state.sha, server.state.dirty) == (sha, False)
    assert f"the code is commit {sha[:10]}" in said and f"{submission} was sent" in said
    overtaken, said = sent_by(Inbox(overtaken=True))
    assert overtaken.action == "attach" and "was sent" not in said


def test_uncommitted_changes_make_another_job_and_are_sent_without_secrets(checkout: Path) -> None:
    clean, _ = sent_by(Inbox())
    (checkout / "pipeline" / "a.py").write_text("URI = 'postgresql://me:hunter2@db/x'")
    (checkout / "pipeline" / "b.py").write_text("new")
    decision, said = sent_by(server := Inbox())
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
    assert "no git checkout" in sent_by(Inbox())[1]


def test_a_config_that_the_job_would_lack_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("my.yaml", "data/y.yaml"):
        (checkout / file).parent.mkdir(exist_ok=True)
        (checkout / file).write_text("x: 1")
    server = Inbox()
    assert sent_by(server, replace(TASK, files=("./pipeline/../my.yaml",)))[0].action == "send"
    for absent in ("data/y.yaml", "elsewhere.yaml", "../elsewhere.yaml", str(checkout / "my.yaml")):
        with pytest.raises(UserError, match="not among the files"):
            sent_by(server, replace(TASK, files=(absent,)))
    monkeypatch.chdir(checkout / "pipeline")
    with pytest.raises(UserError, match="from the folder of the checkout"):
        sent_by(server)
    assert len(server.sent) == 1


def test_the_runtime_environment_holds_no_secrets(tmp_path: Path) -> None:
    assert read_runtime_env(REPOSITORY / RUNTIME_ENV)["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    file, secret = tmp_path / "env.yaml", "env_vars: {MLFLOW_TRACKING_PASSWORD: hunter2}"
    mistakes = {secret: "env_vars.MLFLOW_TRACKING_PASSWORD", "[1]": "is a mapping", "{": "is no YAML"}
    for text, sentence in mistakes.items():
        file.write_text(text)
        with pytest.raises(UserError, match=sentence) as caught:
            read_runtime_env(file)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("known", "again", "decision"),
    [
        ({}, False, Decision("send", ID, None)),
        ({"mgmrn-train-cub-00000000": "RUNNING", "raysubmit_1": "RUNNING"}, False, Decision("send", ID, None)),
        ({ID: "PENDING"}, True, Decision("attach", ID, None)),
        ({ID: "SUCCEEDED"}, True, Decision("send", f"{ID}-2", "SUCCEEDED")),
        ({f"{ID}-2": "STOPPED", ID: "FAILED"}, False, Decision("send", f"{ID}-3", "STOPPED")),
        ({ID: "FAILED", f"{ID}-10": "SUCCEEDED"}, False, Decision("done", f"{ID}-10", None)),
        ({ID: "FAILED", f"{ID}-x": "RUNNING"}, False, Decision("send", f"{ID}-2", "FAILED")),
    ],
)
def test_a_command_is_one_job(known: dict[str, str], again: bool, decision: Decision) -> None:
    assert decide(ID, Inbox(known).jobs(), again=again) == decision


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
    assert (in_job(), job_tags(), job_settings()) == (False, {}, {})
    for text in ("", "{}", "[1]", "null", '{"metadata": 3, "runtime_env": {"env_vars": null}}'):
        monkeypatch.setenv(JOB_VARIABLE, text)
        assert (in_job(), job_tags(), dict(job_settings())) == (True, {}, {})
    diff = "diff --git a/x b/x\n-1\n+2\ndiff --git a/ÿ b/ÿ\n-diff --git\n"
    state = GitState("1f0c9a2e", True, diff, ("new.py", "other.py"))
    metadata = {"job_submission_id": "mgmrn-1", CODE_STATE: state.to_label()}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": metadata, "runtime_env": {"env_vars": {"A": "1"}}}))
    assert (in_job(), job_tags(), job_settings()) == (True, {SUBMISSION_TAG: "mgmrn-1"}, {"A": "1"})
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
