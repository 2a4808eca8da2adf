"""Mistakes that are found before anything is started: one sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from mgmrn.config import BackboneConfig
from mgmrn.errors import UserError
from mgmrn.model.backbone import build_backbone
from pipeline.cli.app import main
from tests.tiny import write_benchmark

EXPERIMENT = """
benchmark: {name: TINY, images: {size: 32}}
model:
  backbone: {name: resnet18, weights: none, trainable: all}
  levels: [c4, c5]
  width: 32
schedule: {epochs: 1}
"""


class Answer(NamedTuple):
    code: int
    error: str
    where: str
    hint: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking database for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    write_benchmark(tmp_path / "data", size=16)
    return tmp_path


@pytest.fixture
def refused(here: Path, store: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs `train tiny.yaml` twice, for people and for programs, and checks what every refusal has in common."""

    def run(*options: str) -> Answer:
        arguments = ["train", "tiny.yaml", "--data-root", "data", "--tracking-uri", store, *options]
        before = tree(here)
        code = main(arguments)
        plain = capsys.readouterr()
        assert plain.out == ""
        assert plain.err.startswith("error: ") and plain.err.endswith("\n")
        assert "Traceback" not in plain.err
        assert main([*arguments, "--json"]) == code
        printed = capsys.readouterr()
        answer = json.loads(printed.out)
        assert answer.keys() == {"error", "where", "hint"}
        assert printed.err == plain.err
        assert all(part in plain.err for part in answer.values())
        assert tree(here) == before
        assert runs(store) == []
        return Answer(code, **answer)

    return run


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def runs(store: str) -> list[str]:
    client = MlflowClient(tracking_uri=store)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def test_a_config_with_many_mistakes_is_answered_with_all_of_them(refused: Callable[..., Answer]) -> None:
    answer = refused("--set", "model.widht=64", "--set", "schedule.epochs=many", "--set", "loss.scale=-1")
    assert answer.code == 2
    first, *others = answer.error.splitlines()
    assert first == "3 errors in tiny.yaml:"
    assert sorted(line.strip() for line in others) == [
        "loss.scale must be greater than 0, got -1 [--set]",
        "schedule.epochs must be a valid integer, got many [--set]",
        "unknown field model.widht [--set] (did you mean model.width?)",
    ]


def test_an_unknown_key(refused: Callable[..., Answer]) -> None:
    wanted = Answer(2, "unknown field optimiser.haed_lr", "--set", "did you mean optimiser.head_lr?")
    assert refused("--set", "optimiser.haed_lr=1e-3") == wanted


def test_a_level_that_no_backbone_has(refused: Callable[..., Answer]) -> None:
    answer = refused("--set", "model.levels=[c4, c6]")
    assert answer.code == 2
    assert answer.error == "model.levels.1 must be 'c2', 'c3', 'c4' or 'c5', got c6"


def test_a_finetuned_stage_behind_the_deepest_level(refused: Callable[..., Answer]) -> None:
    stages = "model.backbone.trainable_stages=[c4, c5]"
    answer = refused("--set", "model.levels=[c3, c4]", "--set", "model.backbone.trainable=stages", "--set", stages)
    assert answer.code == 2
    assert "trainable_stages names c5, which lies behind the deepest level, c4" in answer.error


def test_a_rule_between_sections(refused: Callable[..., Answer]) -> None:
    answer = refused("--set", "cache_features=true")
    assert (answer.code, answer.where) == (2, "--set")
    assert "cache_features needs a frozen backbone" in answer.error


def test_no_data_root(here: Path, refused: Callable[..., Answer]) -> None:
    answer = refused("--data-root", "nowhere")
    assert answer[:3] == (2, f"the data root {here / 'nowhere'} does not exist", "--data-root")


@pytest.mark.parametrize("name", ["res101.mat", "att_splits.mat"])
def test_no_mat_file(here: Path, refused: Callable[..., Answer], name: str) -> None:
    file = Path("data/xlsa17/data/TINY") / name
    (here / file).unlink()
    answer = refused()
    assert (answer.code, answer.error) == (2, f"{name} of TINY does not exist")
    assert Path(answer.where) == here / file


def test_a_list_of_pictures_that_are_not_there(here: Path, refused: Callable[..., Answer]) -> None:
    (here / "data" / "TINY").rename(here / "data" / "ELSEWHERE")
    answer = refused()
    assert answer.code == 2
    assert "24 of 24 pictures are not there, the first is images/009.Class_0/0.png" in answer.error
    assert answer.where == str(here / "data" / "TINY")


class _Payload:
    """Unpickled by an unwary reader, makes a folder."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def test_a_pickle_that_would_run_code(here: Path, refused: Callable[..., Answer]) -> None:
    canary = here / "canary"
    file = here / "data" / "w2v" / "TINY_attribute.pkl"
    file.write_bytes(pickle.dumps(_Payload(canary)))
    answer = refused()
    assert answer.code == 2
    assert answer.error == f"the word vectors are not a plain pickled array: it asks for {os.mkdir.__module__}.mkdir"
    assert answer.where == str(file)
    assert not canary.exists()
    pickle.loads(file.read_bytes())
    assert canary.is_dir()  # The payload is armed.


HOSTILE = """\
# Question: none.
base: !!python/object/apply:os.mkdir [{canary}]
"""
VERBS = {
    "train": ("train", "hostile.yaml", "--data-root", "data"),
    "search": ("search", "hostile.yaml", "--data-root", "data"),
    "ablate": ("ablate", "hostile.yaml", "--data-root", "data"),
    "plan": ("plan", "hostile.yaml", "--data-root", "data"),
    "config show": ("config", "show", "hostile.yaml"),
    "config validate": ("config", "validate", "hostile.yaml"),
}


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:pathlib.Path", "name:os.mkdir", "module:os"])
@pytest.mark.parametrize("verb", VERBS)
def test_yaml_that_would_run_code(
    here: Path, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str, tag: str
) -> None:
    """Experiments, searches and grids alike: the tag is named with its place, and nothing of it is run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    canary = here / "canary"
    text = HOSTILE.format(canary=canary)
    (here / "hostile.yaml").write_text(text.replace("object/apply:os.mkdir", tag))
    assert main([*VERBS[verb], "--json"]) == 2
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert "Traceback" not in told
    assert f"python/{tag}" in told and "is not allowed" in told and "hostile.yaml:2" in told
    assert not canary.exists() and runs(store) == []
    yaml.unsafe_load(text)
    assert canary.is_dir()  # The payload is armed.


def test_backbone_weights_that_would_run_code(here: Path) -> None:
    canary, file = here / "canary", here / "data" / "armed.pth"
    torch.save({"conv1.weight": _Payload(canary)}, file)
    with pytest.raises(UserError, match=rf"the weights file asks for {os.mkdir.__module__}\.mkdir"):
        build_backbone(BackboneConfig(name="resnet18", weights=str(file)), ("c4",))
    assert not canary.exists()


def test_no_weights_file(refused: Callable[..., Answer]) -> None:
    answer = refused("--set", "model.backbone.weights=backbones/none.pth")
    assert (answer.code, answer.where) == (2, "model.backbone.weights")
    assert answer.error == "the weights file backbones/none.pth does not exist"


@pytest.fixture
def silent_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A port that takes connections and never says a word."""
    monkeypatch.setattr("pipeline.tracking.connection.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracking_server_that_is_not_there(refused: Callable[..., Answer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = refused("--tracking-uri", f"http://127.0.0.1:{port}")
    assert (answer.code, answer.where) == (2, f"http://127.0.0.1:{port}")
    assert answer.error.startswith("unreachable: nothing answers at the tracking address")


def test_a_tracking_server_that_says_nothing(refused: Callable[..., Answer], silent_address: str) -> None:
    answer = refused("--tracking-uri", silent_address)
    assert (answer.code, answer.where) == (2, silent_address)
    assert answer.error.startswith("unreachable: no MLflow server answers")


def test_more_workers_than_this_machine_has_cpus(
    refused: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.cluster.available_cpus", lambda: 4)
    answer = refused("--workers", "3", "--cpus-per-worker", "2")
    assert (answer.code, answer.where) == (3, "")
    assert answer.error == "3 workers × 2 CPUs were asked for, but this machine has 4 CPUs"
