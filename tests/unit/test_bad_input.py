"""Mistakes that are found before anything is started: one sentence, the right exit code, no file left behind."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from mgmrn.config import BackboneConfig
from mgmrn.errors import UserError
from mgmrn.model.backbone import build_backbone
from tests.payload import Payload
from tests.ray.small import EXPERIMENT
from tests.tiny import write_benchmark


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> str:
    """A tracking database for all tests here."""
    return f"sqlite:///{shutil.copy(tables, tmp_path_factory.mktemp('tracking'))}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return write_benchmark(tmp_path / "data", size=16).parent


@pytest.fixture
def refused(here: Path, store: str, typed: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs `train tiny.yaml`, checks that no file is changed and no run tracked, and returns exit code, error and place."""

    def run(*options: str) -> tuple[int, str, str]:
        before = tree(here)
        code, out, err = typed("train", "tiny.yaml", "--data-root", "data", "--tracking-uri", store, "--json", *options)
        answer = json.loads(out)
        assert err.startswith("error: ") and all(part in err for part in answer.values()) and "Traceback" not in err
        assert tree(here) == before
        assert runs(store) == []
        return code, answer["error"], answer["where"]

    return run


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def runs(store: str) -> list[str]:
    client = MlflowClient(tracking_uri=store)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def test_files_that_do_not_exist(here: Path, refused: Any) -> None:
    error = "the weights file backbones/none.pth does not exist"
    assert refused("--set", "model.backbone.weights=backbones/none.pth") == (2, error, "model.backbone.weights")
    (here / "data" / "TINY").rename(here / "data" / "ELSEWHERE")
    code, error, where = refused()
    assert (code, where) == (2, str(here / "data" / "TINY"))
    assert "24 of 24 pictures are not there, the first is images/009.Class_0/0.png" in error
    for name in ("att_splits.mat", "res101.mat"):
        file = here / "data" / "xlsa17" / "data" / "TINY" / name
        file.unlink()
        assert refused() == (2, f"{name} of TINY does not exist", str(file))


def test_a_pickle_that_would_run_code(here: Path, refused: Any) -> None:
    canary = here / "canary"
    file = here / "data" / "w2v" / "TINY_attribute.pkl"
    file.write_bytes(pickle.dumps(Payload(canary)))
    error = f"the array of word vectors cannot be read: it asks for {os.mkdir.__module__}.mkdir"
    assert refused() == (2, error, str(file))
    assert not canary.exists()
    pickle.loads(file.read_bytes())
    assert canary.is_dir()  # The payload is armed.


HOSTILE = """\
# Question: none.
base: !!python/object/apply:os.mkdir [{canary}]
"""
VERBS = ("train", "search", "ablate", "plan", "config show", "config validate")


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:pathlib.Path", "name:os.mkdir", "module:os"])
def test_yaml_that_would_run_code(
    tmp_path: Path, store: str, typed: Any, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    """Experiments, searches and grids: the error names the tag and its line, and the tag is not executed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    canary, text = tmp_path / "canary", HOSTILE.format(canary=tmp_path / "canary")
    (tmp_path / "hostile.yaml").write_text(text.replace("object/apply:os.mkdir", tag))
    for verb in VERBS:
        code, out, err = typed(*verb.split(), "hostile.yaml", "--json")
        assert code == 2 and "Traceback" not in err
        assert all(part in out + err for part in (f"python/{tag}", "is not allowed", "hostile.yaml:2"))
    assert not canary.exists() and runs(store) == []
    yaml.unsafe_load(text)
    assert canary.is_dir()  # The payload is armed.


def test_backbone_weights_that_would_run_code(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "armed.pth"
    torch.save({"conv1.weight": Payload(canary)}, file)
    with pytest.raises(UserError, match=rf"the weights file asks for {os.mkdir.__module__}\.mkdir"):
        build_backbone(BackboneConfig(name="resnet18", weights=str(file)), ("c4",))
    assert not canary.exists()


def test_more_workers_than_this_machine_has_cpus(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.cluster.available_cpus", lambda: 4)
    error = "3 workers × 2 CPUs were asked for, but this machine has 4 CPUs"
    assert refused("--workers", "3", "--cpus-per-worker", "2") == (3, error, "")
