"""A command is checked where it is given, and sent once, from the checkout, with its commit and no secrets."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from mgmrn.errors import UserError
from pipeline.cli.app import app, main
from pipeline.cli.job_verbs import read_task
from pipeline.cli.options import check_outlasts_job, lies_in_job
from pipeline.job_environment import CODE_STATE, JOB_VARIABLE
from pipeline.jobs import submit as submitting
from pipeline.jobs.server import Job, JobExistsError
from pipeline.jobs.submit import CHECKOUT, RUNTIME_ENV, Decision, Task, code_digest, decide, read_runtime_env, submit
from pipeline.tracking.environment import GitState

WANTED = "mgmrn-train-cub-1f0c9a2e"
PLACES = ("--storage", "/shared/runs", "--data-root", "/shared/data", "--tracking-uri", "http://mlflow:5000")
VARIABLES = ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE", "RAY_API_SERVER_ADDRESS")
TASK = Task("train", "cub", ("cub", "--set", "a=1 2"), (), "0" * 64)


class Server:
    """Takes jobs, or says that it has them already."""

    address = "http://host:8265"

    def __init__(self, *earlier: Job) -> None:
        self.known = list(earlier)
        self.sent: list[tuple[str, str, dict[str, Any], Mapping[str, str]]] = []
        self.state: GitState | None = None
        self.overtaken_by: Job | None = None

    def jobs(self) -> list[Job]:
        return self.known

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: dict[str, Any], labels: Mapping[str, str]
    ) -> None:
        if self.overtaken_by is not None:
            self.known = [replace(self.overtaken_by, submission_id=submission_id)]
            raise JobExistsError("exists")
        self.state = GitState.from_label(labels[CODE_STATE])
        self.sent.append((submission_id, entrypoint, runtime_env, labels))


def job(submission_id: str = WANTED, status: str = "RUNNING") -> Job:
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
    assert runtime_env["working_dir"] == str(checkout)
    assert {name: value for name, value in labels.items() if name != CODE_STATE} == {
        "mgmrn.verb": "train",
        "mgmrn.name": "cub",
        "mgmrn.code_sha": sha,
        "mgmrn.code_dirty": "false",
    }
    assert (server.state.sha, server.state.dirty) == (sha, False)
    assert f"the code is commit {sha[:10]}" in said and f"{submission} was sent" in said

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
    assert server.state.dirty and "changed" in server.state.diff and server.state.untracked == ("pipeline/b.py",)
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
    assert sent_by(server, replace(TASK, files=("./pipeline/../my.yaml",)))[0].action == "send"
    (checkout / "data").mkdir()
    (checkout / "data" / "y.yaml").write_text("x: 1")
    for absent in ("data/y.yaml", "elsewhere.yaml", "../elsewhere.yaml", str(checkout / "my.yaml")):
        with pytest.raises(UserError, match="not among the files"):
            sent_by(server, replace(TASK, files=(absent,)))
    monkeypatch.chdir(checkout / "pipeline")
    with pytest.raises(UserError, match="from the folder of the checkout"):
        sent_by(server)
    assert len(server.sent) == 1


def test_changes_that_are_too_long_for_a_job_are_left_out_and_told(checkout: Path) -> None:
    noise = "".join(secrets.token_hex(40) + "\n" for _ in range(2000))
    (checkout / "pipeline" / "a.py").write_text(noise)
    _, said = sent_by(server := Server())
    assert "too long to be kept" in said
    assert server.state.dirty and server.state.diff == ""
    assert len(server.sent[0][3][CODE_STATE]) < submitting.STATE_LIMIT


def test_a_secret_in_the_changes_is_not_sent(checkout: Path) -> None:
    (checkout / "pipeline" / "a.py").write_text("URI = 'postgresql://me:hunter2@db/x'")
    sent_by(server := Server())
    assert "hunter2" not in server.state.diff and "me:***@db" in server.state.diff


def test_the_digest_of_the_code_follows_names_and_contents(checkout: Path, tmp_path: Path) -> None:
    plain = code_digest(checkout)
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    os.utime(copy / "pipeline" / "a.py", (0, 10**9))
    (copy / "README.md").write_text("no part of a job")
    (copy / "pipeline" / "__pycache__").mkdir()
    (copy / "pipeline" / "__pycache__" / "a.pyc").write_text("compiled")
    assert code_digest(copy) == plain
    (copy / "pipeline" / "a.py").rename(copy / "pipeline" / "b.py")
    assert code_digest(copy) != plain


def test_the_runtime_environment_holds_no_secrets(tmp_path: Path) -> None:
    assert read_runtime_env(CHECKOUT / RUNTIME_ENV)["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    file = tmp_path / "env.yaml"
    for text, sentence in [
        ("env_vars: {MLFLOW_TRACKING_PASSWORD: word}", "env_vars.MLFLOW_TRACKING_PASSWORD"),
        ("[1]", "is a mapping"),
        ("{", "cannot read"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            read_runtime_env(file)
        assert sentence in str(caught.value) and "word" not in str(caught.value).replace("PASSWORD", "")
    with pytest.raises(UserError, match="cannot read"):
        read_runtime_env(tmp_path / "absent.yaml")


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


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def task(verb: str, *arguments: str) -> Task:
    root: Any = typer.main.get_command(app)
    context = root.make_context("python -m pipeline", ["submit"])
    return read_task(context, verb, arguments)


def test_the_verbs_own_arguments_pass_unchanged() -> None:
    arguments = ("cub100", "--set", "loss.scale=5 ", "--seeds", "0,1", "--json", *PLACES)
    read = task("train", *arguments)
    assert read.arguments == arguments
    assert read.entrypoint.startswith("python -m pipeline train cub100 --set 'loss.scale=5 ' --seeds 0,1 --json")
    assert read.submission_id("code").startswith("mgmrn-train-cub100-")


def test_the_id_follows_what_is_run_and_not_how_it_is_written() -> None:
    plain = task("train", "cub", *PLACES).submission_id("code")
    assert task("train", "cub", "--json", *PLACES).submission_id("code") == plain
    assert task("train", *PLACES, "cub", "--set", "schedule.epochs=0x1e", "--set", "loss.scale=3").identity == (
        task("train", "cub", "--set", "loss.scale=3", "--set", "schedule.epochs=30", *PLACES).identity
    )
    different = [
        task("train", "cub", "--set", "loss.scale=3", *PLACES).submission_id("code"),
        task("train", "cub", "--seeds", "1", *PLACES).submission_id("code"),
        task("train", "cub", "--force", *PLACES).submission_id("code"),
        task("train", "cub", *PLACES, "--tracking-uri", "http://other").submission_id("code"),
        task("train", "cub", *PLACES).submission_id("other code"),
    ]
    assert len({plain, *different}) == 6


@pytest.mark.parametrize("verb", ["search", "ablate"])
def test_grids_and_searches_are_jobs_too(verb: str) -> None:
    name = {"search": "cub100", "ablate": "ablation/components"}[verb]
    read = task(verb, name, *PLACES)
    assert read.submission_id("c").startswith(f"mgmrn-{verb}-{name.rpartition('/')[2]}-")
    assert read.files == ()
    if verb == "ablate":
        assert task(verb, "components", *PLACES).identity == read.identity
        assert task(verb, name, "--benchmarks", "cub", *PLACES).identity != read.identity


def test_config_files_are_known(tmp_path: Path) -> None:
    file = tmp_path / "my run.yaml"
    file.write_text("extends: [experiment/cub]\n")
    read = task("train", str(file), *PLACES)
    assert read.files == (str(file),)
    assert read.submission_id("c").startswith("mgmrn-train-my-run-")


def test_what_the_environment_says_here_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGMRN_DATA_ROOT", "/shared/data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    read = task("train", "cub", "--storage", "/shared/runs")
    assert read.arguments[3:] == ("--tracking-uri", "http://mlflow:5000", "--data-root", "/shared/data")
    assert read.identity == task("train", "cub", *PLACES).identity


def test_what_the_cluster_may_say_is_left_to_it() -> None:
    assert task("train", "cub", "--storage", "/shared/runs").arguments == ("cub", "--storage", "/shared/runs")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("demo",), "'demo' does not run as a job [VERB] (submit one of train, search, ablate)"),
        (("train", "cub"), "goes with the job [--storage]"),
        (("train", "cub", *PLACES, "--storage", "runs"), "goes with the job [--storage]"),
        (("train", "cub", *PLACES, "--data-root", "data"), "goes with the job [--data-root]"),
        (("ablate", "components", *PLACES, "--tracking-uri", "sqlite:///a.db"), "[--tracking-uri]"),
        (("search", "cub100", *PLACES, "--study-storage", "sqlite:///a.db"), "[--study-storage]"),
        (("train", "cub", *PLACES, "--address", "head:6379"), "before the verb: submit --address"),
        (("train", "cubb", *PLACES), "did you mean cub"),
        (("train", "cub", *PLACES, "--set", "loss.scalee=1"), "loss.scale"),
        (("train", "cub", *PLACES, "--seeds", "a"), "[--seeds]"),
        (("train", "cub", *PLACES, "--workers", "4..2"), "[--workers]"),
        (("ablate", "components", *PLACES, "--benchmarks", "cubb"), "[--benchmarks]"),
        (("search", "nothing", *PLACES), "there is no search 'nothing'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(command: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        task(*command)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tracking-uri", "http://me:hunter2@mlflow:5000"),
        ("--tracking-uri=postgresql://me:hunter2@host/db",),
        ("--set", "model.backbone.weights=https://host/x?X-Amz-Signature=hunter2"),
    ],
)
def test_a_secret_is_not_sent_and_not_shown(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        task("train", "cub", *PLACES, *arguments)
    assert "hunter2" not in str(caught.value) and "MLFLOW_TRACKING_PASSWORD" in str(caught.value)


def test_a_secret_of_the_environment_is_not_sent_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    with pytest.raises(UserError) as caught:
        task("train", "cub", "--storage", "/shared/runs")
    assert "hunter2" not in str(caught.value)


def test_an_unknown_option_of_the_verb_is_the_verbs_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "train", "cub", "--sseeds", "1"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert main(["submit", "--no-wiat", "train", "cub"]) == 2
    assert "--no-wait" in capsys.readouterr().err
    assert main(["submit", "train", "--help"]) == 0
    assert "--gpus-per-worker" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["runs", Path(".mgmrn/runs"), "sqlite:///mlflow.db", "sqlite+pysqlite:///a/b.db"])
def test_a_relative_place_lies_in_the_job(place: str | Path) -> None:
    assert lies_in_job(place)


@pytest.mark.parametrize(
    "place", ["/runs", Path("/runs"), "sqlite:////runs/mlflow.db", "http://host:5000", "postgresql://me@host/db"]
)
def test_what_is_elsewhere_outlasts_it(place: str | Path) -> None:
    assert not lies_in_job(place)


def test_the_sentence_names_the_option_and_what_to_give() -> None:
    with pytest.raises(UserError) as caught:
        check_outlasts_job("sqlite:///x.db?password=secret", "--tracking-uri", "MLFLOW_TRACKING_URI")
    sentence = str(caught.value)
    assert all(part in sentence for part in ("--tracking-uri", "sqlite:////FILE", "MLFLOW_TRACKING_URI"))
    assert "secret" not in sentence


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "cub", "--tracking-uri", "http://host", "--data-root", "/data"], "--storage"),
        (["train", "cub", "--storage", "/runs", "--data-root", "/data"], "--tracking-uri"),
        (["ablate", "components", "--storage", "/runs", "--tracking-uri", "http://host"], "--data-root"),
        (["search", "cub100", "--storage", "/r", "--tracking-uri", "http://h", "--data-root", "/d"], "--study-storage"),
        (["plan", "components", "--data-root", "/data"], "--tracking-uri"),
    ],
)
def test_a_driver_refuses_its_own_folder_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    for variable in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert main(arguments) == 2
    assert f"goes with the job [{option}]" in capsys.readouterr().err
