"""A job's command is read and checked where it is given; what would be wrong on the cluster is said here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from mgmrn.errors import UserError
from pipeline.cli.app import app, main
from pipeline.cli.job_task import Task, read_task

PLACES = ("--storage", "/shared/runs", "--data-root", "/shared/data", "--tracking-uri", "http://mlflow:5000")
VARIABLES = ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE", "RAY_API_SERVER_ADDRESS")


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
