"""Traps of Ray and MLflow at the versions that are used; docs/reliability.md lists them all."""

import ast
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.errors import TrackingError
from pipeline.spool import NewRun
from pipeline.storage import StoragePath
from pipeline.tracking.store import TrackingStore
from pipeline.train import cluster
from pipeline.train.cell import Cell
from pipeline.train.cluster import ray_session
from pipeline.train.fit import RETRIES, fit
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHING = {f"pipeline/{name}.py" for name in ("launch", "search/launch", "ablation/launch", "models/reproduce")}
"""Modules that start Ray; benchmarks run the verbs."""

PITFALLS = {
    *("get_checkpoint", "restore", "resume_from_checkpoint", "fail_fast", "prepare_model"),
    *("prepare_data_loader", "DistributedSampler", "setup_mlflow", "MLflowLoggerCallback", "OptunaSearch"),
}
"""Functions, classes and options with traps, which are not used."""


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Syntax trees of the product, by file."""
    files = [file for folder in ("mgmrn", "pipeline", "benchmarks") for file in (REPOSITORY / folder).rglob("*.py")]
    return {str(file.relative_to(REPOSITORY)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def test_functions_with_traps_are_not_used(trees: dict[str, ast.Module]) -> None:
    found = {
        (file, name)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if not isinstance(node, ast.FunctionDef)
        for name in (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
    }
    assert ("pipeline/train/fit.py", "DataParallelTrainer") in found
    assert [(file, name) for file, name in found if name in PITFALLS] == []


def test_every_verb_and_benchmark_starts_ray_by_the_one_function_that_protects_it(trees: dict[str, ast.Module]) -> None:
    called = {
        file: {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for file, tree in trees.items()
    }
    assert [file for file, names in called.items() if "ray.init" in names] == ["pipeline/train/cluster.py"]
    assert {file for file, names in called.items() if names & {"ray_session", "launch_session"}} >= LAUNCHING


def test_ray_stop_is_not_used() -> None:
    """`ray stop` would also end what others run on the machine."""
    command = re.compile(r"""["']ray["'],\s*["']stop["']|\bray stop\b""")
    folders = [REPOSITORY / name for name in ("pipeline", "benchmarks", "tests", ".ci")]
    files = {file for folder in folders for file in folder.rglob("*.py")}
    assert [file for file in files - {Path(__file__)} if command.search(file.read_text(encoding="utf-8"))] == []


def test_the_versions_are_those_that_were_measured() -> None:
    """Any other may have other traps: a change of these lines is a reason to go through docs/reliability.md."""
    text = re.sub(r"\[[\w,]+\]", "", (REPOSITORY / "requirements.txt").read_text())
    assert {"torch==2.14.1", "ray==2.60.0", "mlflow==3.17.2", "optuna==5.0.0"} <= set(text.split())
    assert {"scipy==1.17.1", "numpy<2.5"} <= set(text.split()), "later ones do not install on Python 3.11"


class Trainer:
    """Takes Ray's place, and fails as it does when it gives up."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, train_loop: Any, **settings: Any) -> None:
        Trainer.settings = settings

    def fit(self) -> None:
        from ray.train import WorkerGroupError

        raise WorkerGroupError("lost", {0: RuntimeError("the worker died")})


@pytest.mark.parametrize("placement", [Placement(2, 1, 0), Placement(1, 1, 0, most_workers=3)])
def test_a_run_has_a_name_of_its_own_and_an_end(
    tmp_path: Path, small_cell: Cell, monkeypatch: pytest.MonkeyPatch, placement: Placement
) -> None:
    """By default, Ray Train takes over what stands under a name, and asks for lost workers for ever."""
    spec = small_cell.spec(tmp_path / "data", StoragePath.parse(tmp_path / "runs"), 1)
    monkeypatch.setattr("pipeline.train.fit.DataParallelTrainer", Trainer)
    *_, ended = fit(spec, placement)
    assert isinstance(ended, Failure) and ended.reason == "workers-lost"
    run, scaling = Trainer.settings["run_config"], Trainer.settings["scaling_config"]
    assert run.name == spec.run_folder.name and not Path(run.storage_path).exists(), (
        "an empty folder, which is gone now"
    )
    assert small_cell.config_hash[:8] in run.name and small_cell.split in run.name
    assert (run.failure_config.max_failures, run.failure_config.controller_failure_limit) == (RETRIES, RETRIES)
    assert scaling.num_workers == placement.number, "0 would be a mode without callbacks, names or storage"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with which Ray would be started, and the environment at that moment."""
    found: dict[str, Any] = {}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", clean)
    monkeypatch.setattr("ray.init", lambda **settings: found.update(settings, environment=dict(os.environ)))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_hosts", lambda: ())
    monkeypatch.setattr(cluster, "check_reachable", lambda address: None)
    monkeypatch.setattr(cluster.ray_start, "await_worker", lambda: None)
    return found


def test_a_local_instance_is_started_by_its_address_local(started: dict[str, Any]) -> None:
    """A killed driver leaves a note of its instance, which Ray would else try to join."""
    with ray_session(None):
        pass
    assert started["address"] == "local"
    environment = started["environment"]
    assert environment["RAY_memory_monitor_refresh_ms"] == "0"
    assert started["log_to_driver"] is False
    assert started["include_dashboard"] is True, "without it the resources of a trial that Ray Tune stops stay taken"
    assert environment["RAY_ADDRESS"].startswith("127.0.0.1:"), "what Ray Tune stops asks this instance for its state"


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_settings_that_the_code_relies_on_reach_ray(started: dict[str, Any], address: str | None) -> None:
    with ray_session(address):
        pass
    settings = started["environment"] if address is None else started["runtime_env"]["env_vars"]
    assert settings["RAY_TRAIN_ENABLE_PRINT_PATCH"] == "0", "what workers print would come twice"
    assert float(settings["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]) <= 1, "epochs would be as long as Ray's poll"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    assert settings["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
    assert settings["MALLOC_ARENA_MAX"] == "1"
    assert settings["MALLOC_TRIM_THRESHOLD_"] == settings["MALLOC_MMAP_THRESHOLD_"] == "2147483647"


def test_mlflow_ignores_inherited_runs_and_sends_no_telemetry(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it waits six minutes for a dead server. Runs under an inherited id: `tests/unit/test_store.py`."""
    monkeypatch.setattr(os, "environ", os.environ | {"MLFLOW_RUN_ID": "0" * 32})
    TrackingStore.connect(store.uri)
    assert "MLFLOW_RUN_ID" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1


def test_a_param_never_changes_so_a_run_goes_on_with_its_own_config_alone(store: TrackingStore) -> None:
    run_id = store.create_run(NewRun("run", {}, {"seed": "0"}))
    store.describe_run(run_id, NewRun("run", {}, {"seed": "0"}))
    with pytest.raises(TrackingError, match=r"[Cc]hang"):
        store.describe_run(run_id, NewRun("run", {}, {"seed": "1"}))
    assert store.client.get_run(run_id).data.params["seed"] == "0"


def test_mlflow_itself_stores_a_step_as_often_as_it_is_logged(store: TrackingStore) -> None:
    """If this fails, the sender need not ask for the steps that are there."""
    run_id = store.create_parent("run", {})
    for _ in range(2):
        store.log_metrics(run_id, 1, {"train/total": 0.5}, 1000 + _)
    assert len(store.client.get_metric_history(run_id, "train/total")) == 2
