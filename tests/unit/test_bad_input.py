"""Mistakes that are found before anything is started: one sentence, the right exit code, no file left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.ray.small import EXPERIMENT
from tests.tiny import write_benchmark


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> str:
    return f"sqlite:///{shutil.copy(tables, tmp_path_factory.mktemp('tracking'))}"


@pytest.fixture
def here(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return write_benchmark(tmp_path / "data", size=16).parent


@pytest.fixture
def refused(here: Path, store: str, typed: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs `train tiny.yaml`, checks that no file is changed and no run tracked, and returns exit code, error and place."""

    def run(*options: str) -> tuple[int, str, str]:
        before = tree(here)
        code, out, err = typed("train", "tiny.yaml", "--data-root", "data", "--json", *options)
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
    file = here / "data" / "xlsa17" / "data" / "TINY" / "att_splits.mat"
    file.unlink()
    assert refused() == (2, "att_splits.mat of TINY does not exist", str(file))


HOSTILE = "# Question: none.\nbase: !!python/object/apply:os.mkdir [{canary}]\n"
VERBS = ("train", "search", "ablate", "plan", "config show", "config validate")


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:pathlib.Path", "name:os.mkdir", "module:os"])
def test_yaml_that_would_run_code(here: Path, store: str, typed: Any, tag: str) -> None:
    """Experiments, searches and grids: the error names the tag and its line, and the tag is not executed."""
    canary, text = here / "canary", HOSTILE.format(canary=here / "canary")
    (here / "hostile.yaml").write_text(text.replace("object/apply:os.mkdir", tag))
    for verb in VERBS:
        code, out, err = typed(*verb.split(), "hostile.yaml", "--json")
        assert code == 2 and "Traceback" not in err
        assert all(part in out + err for part in (f"python/{tag}", "is not allowed", "hostile.yaml:2"))
    assert not canary.exists() and runs(store) == []
    yaml.unsafe_load(text)
    assert canary.is_dir()  # The payload is armed.


def test_more_workers_than_this_machine_has_cpus(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.cluster.available_cpus", lambda: 4)
    error = "3 workers × 2 CPUs were asked for, but this machine has 4 CPUs"
    assert refused("--workers", "3", "--cpus-per-worker", "2") == (3, error, "")
