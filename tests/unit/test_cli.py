"""The command line as a contract: verbs, options, exit codes, standard output, and what it loads."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from mgmrn.errors import ResourceError, UserError
from pipeline.cli.app import command
from pipeline.console import option
from pipeline.errors import TrackingError
from pipeline.launch import Outcome
from pipeline.storage import StoragePath
from pipeline.train.cell import RunSummary
from pipeline.train.placement import Workers
from pipeline.where import Where
from tests.commands import verbs


def test_the_surface_is_frozen() -> None:
    found = {}
    for words, verb in verbs(command):
        arguments = [one.name.upper() for one in verb.params if one.param_type_name == "argument"]
        options = {one.opts[0] for one in verb.params if one.param_type_name == "option"} - {"-h", "--help"}
        found[words] = " ".join([*arguments, *sorted(options)])
    assert found == yaml.safe_load(Path(__file__).with_name("surface.yaml").read_text())


HEAVY = ("torch", "ray", "mlflow", "pandas", "scipy", "numpy", "optuna", "plotly")


def test_help_loads_nothing_heavy() -> None:
    start = "import os; os.environ['PATH'] = ''; from pipeline.cli.app import main"
    assert not loaded(f"{start}; main(['--help'])")
    assert not loaded(f"{start}; main(['doctor'])") & {"torch", "ray", "mlflow", "pandas"}, "without a GPU or a server"


@pytest.mark.ray
def test_a_driver_and_a_controller_load_no_torch() -> None:
    """It would take seconds of each run's start, and they do not use it."""
    assert "torch" not in loaded("import pipeline.train.fit, pipeline.launch")


def loaded(code: str) -> set[str]:
    """Heavy packages that a new process has loaded after some code."""
    code = f"{code}; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Replaces the launcher."""
    run = RunSummary("r1", "cub.x.s0.abc", "CUB", "x", "final", 0, "abc", "finished", 0.5, {"test/gzsl_h": 0.25})
    launcher = Mock(return_value=Outcome("finished", (run,), "p1", "sqlite:///x.db"))
    monkeypatch.setattr("pipeline.launch.run_experiment", launcher)
    return launcher


def test_train_passes_its_options_on(launch: Any, typed: Any) -> None:
    arguments = (
        "train cub100 --split tune --set loss.scale=25 --set schedule.epochs=2 --seeds 0,2 --workers 2..4 "
        "--cpus-per-worker 3 --gpus-per-worker 1 --address auto --tracking-uri http://host:5000 --data-root data "
        "--storage store --log-model none --force --json"
    )
    code, out, err = typed(*arguments.split())
    ((request,),) = (called.args for called in launch.call_args_list)
    config = request.composed.config
    assert (code, config.loss.scale, config.schedule.epochs) == (0, 25, 2)
    assert (request.experiment, request.split, request.seeds) == ("cub100", "tune", (0, 2))
    assert (request.workers, request.force, request.log_model) == (Workers(2, 4), True, "none")
    assert request.where == Where("http://host:5000", Path("data"), StoragePath("store"), "auto", 3, 1)
    answer = json.loads(out)
    assert (answer["status"], answer["parent_run_id"], answer["tracking_uri"]) == ("finished", "p1", "sqlite:///x.db")
    assert answer["runs"][0]["metrics"] == {"test/gzsl_h": 0.25} and "cub.x.s0.abc" in err


def test_train_without_options(launch: Any, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGMRN_DATA_ROOT", "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "0.250" in typed("train", "cub-released")[1]
    ((request,),) = (called.args for called in launch.call_args_list)
    assert (request.split, request.seeds, request.force) == (None, (214,), False)
    assert (request.where.data_root, request.where.tracking_uri) == (Path("elsewhere"), "sqlite:///.mgmrn/mlflow.db")


def test_a_printed_command_names_the_store_unless_it_finds_it_by_itself(
    launch: Any, typed: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "`python -m pipeline ui r1 --tracking-uri sqlite:///x.db` shows it" in typed("train", "cub100")[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    assert "`python -m pipeline ui r1` shows it" in typed("train", "cub100")[1]
    assert option("--address", "http://me:word@host", "http://127.0.0.1", "NONE") == ("--address", "http://me:***@host")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("the picture is cut", "a.jpg", "get it again"), 2),
        (TrackingError("unreachable: no server", "http://x", "start it"), 2),
        (ResourceError("8 CPUs were asked for, 2 are there", "ask for less"), 3),
    ],
)
def test_an_expected_error_is_one_sentence(launch: Any, typed: Any, monkeypatch: Any, error: Any, code: int) -> None:
    launch.side_effect = error
    assert typed("train", "cub100") == (code, "", f"error: {error}\n")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    answer = json.loads(typed("train", "cub100", "--json")[1])
    assert answer == {"error": error.message, "where": getattr(error, "where", ""), "hint": error.hint}
    monkeypatch.setenv("MGMRN_TRACEBACK", "1")
    assert "Traceback" in typed("train", "cub100")[2]


def test_a_defect_keeps_its_traceback_and_failed_runs_change_the_exit_code(launch: Any, typed: Any) -> None:
    launch.side_effect = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        typed("train", "cub100")
    launch.side_effect = [Outcome("failed", (), None, "sqlite:///x.db")]
    assert typed("train", "cub100")[0] == 1


def test_config_verbs(tmp_path: Path, typed: Any) -> None:
    shown = json.loads(typed("config", "show", "cub100", "--set", "seed=4", "--json")[1])
    assert (shown["config"]["seed"], shown["provenance"]["seed"]) == (4, "--set")
    changes = json.loads(typed("config", "diff", "cub", "cub-released", "--json")[1])["changes"]
    assert {"path": "schedule.order", "before": "joint", "after": "sequential"} in changes
    bad = tmp_path / "bad.yaml"
    bad.write_text("benchmark: {name: X}\nsed: 1\n")
    code, out, _ = typed("config", "validate", "cub", "search/cub100-quick", "ablation/levels", str(bad), "--json")
    wrong = {"error": "unknown field sed", "where": f"{bad}:2", "hint": "did you mean seed?"}
    assert (code, json.loads(out)) == (2, {"errors": {str(bad): wrong}})
