"""The command line as a contract: verbs, options, exit codes, and what stands on standard output."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from mgmrn.errors import ResourceError, UserError
from pipeline.cli.app import app, main
from pipeline.errors import TrackingError
from pipeline.train.placement import Workers
from pipeline.train.request import Outcome, RunSummary, TrainRequest
from pipeline.where import Where

SURFACE = {
    "train": [
        "EXPERIMENT", "--address", "--cpus-per-worker", "--data-root", "--force", "--gpus-per-worker", "--json",
        "--seeds", "--set", "--split", "--storage", "--tracking-uri", "--workers",
    ],
    "search": [
        "NAME", "--address", "--budget-hours", "--concurrency", "--cpus-per-worker", "--data-root", "--final", "--force",
        "--gpus-per-worker", "--json", "--resume", "--storage", "--study-storage", "--tracking-uri", "--trials",
    ],
    "plan": ["NAME", "--benchmarks", "--data-root", "--json", "--tracking-uri"],
    "ablate": [
        "NAME", "--address", "--benchmarks", "--budget-hours", "--concurrency", "--cpus-per-worker", "--data-root",
        "--gpus-per-worker", "--json", "--mode", "--storage", "--tracking-uri",
    ],
    "compare": [
        "NAMES", "--base", "--benchmarks", "--csv", "--data-root", "--json", "--latex", "--markdown", "--metric",
        "--tracking-uri",
    ],
    "report": ["NAME", "--benchmarks", "--data-root", "--json", "--out", "--tracking-uri", "--ui"],
    "predict": [
        "MODEL", "IMAGES", "--attributes", "--classes", "--json", "--json-lines", "--top", "--tracking-uri",
    ],
    "promote": ["RUN", "--champion", "--json", "--tracking-uri"],
    "reproduce": [
        "RUN", "--address", "--anyway", "--data-root", "--json", "--storage", "--tolerance", "--tracking-uri",
    ],
    "demo": ["--json"],
    "submit": ["VERB", "ARGUMENTS", "--address", "--again", "--json", "--no-wait"],
    "status": ["JOB_ID", "--address", "--json", "--tracking-uri"],
    "logs": ["JOB_ID", "--address", "--follow", "--json"],
    "stop": ["JOB_ID", "--address", "--json"],
    "explain": [
        "MODEL", "--data-root", "--image", "--json", "--out", "--per-class", "--split", "--tracking-uri",
    ],
    "completion": ["SHELL"],
    "doctor": ["--address", "--data-root", "--json", "--storage", "--tracking-uri"],
    "data guide": ["BENCHMARK", "--data-root", "--json"],
    "data import": [
        "FOLDER", "--classes", "--json", "--name", "--oov", "--out", "--seed", "--test-seen-share", "--unseen",
        "--unseen-share", "--vectors",
    ],
    "data verify": ["BENCHMARK", "--data-root", "--json"],
    "data cache": ["EXPERIMENT", "--data-root", "--json", "--set"],
    "data make synthetic": ["--out", "--per-class", "--seed", "--size", "--workers"],
    "data make standin": ["NAME", "--out", "--per-class", "--size", "--source", "--workers"],
    "config show": ["EXPERIMENT", "--json", "--set"],
    "config validate": ["NAMES", "--json"],
    "config diff": ["BEFORE", "AFTER", "--json"],
}  # fmt: skip


def surface(command: Any, words: tuple[str, ...] = ()) -> dict[str, list[str]]:
    if hasattr(command, "commands"):
        found: dict[str, list[str]] = {}
        for name, child in command.commands.items():
            found |= surface(child, (*words, name))
        return found
    arguments = [one.name.upper() for one in command.params if one.param_type_name == "argument"]
    options = sorted(one.opts[0] for one in command.params if one.param_type_name == "option" and one.name != "help")
    return {" ".join(words): arguments + options}


def test_the_surface_is_frozen() -> None:
    found = surface(typer.main.get_command(app))
    for verb, wanted in SURFACE.items():
        assert [one for one in found[verb] if one != "--help"] == wanted, verb
    assert found.keys() == SURFACE.keys()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli.app import main; main(['--help']);"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pandas', 'scipy', 'numpy', 'optuna', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_driver_and_a_controller_load_no_torch() -> None:
    """It would take seconds of each run's start, and they need nothing of it."""
    code = "import sys; import pipeline.train.fit, pipeline.train.launch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands where the launcher stands, and records what it was asked."""
    module = ModuleType("pipeline.train.launch")
    module.requests = []  # type: ignore[attr-defined]
    run = RunSummary("r1", "cub.x.s0.abc", "CUB", "x", "final", 0, "abc", "finished", 0.5, {"test/gzsl_h": 0.25})
    module.outcome = Outcome("finished", (run,), "p1", "sqlite:///x.db")  # type: ignore[attr-defined]

    def run_experiment(request: TrainRequest) -> Outcome:
        module.requests.append(request)
        if isinstance(module.outcome, Exception):
            raise module.outcome
        outcome: Outcome = module.outcome
        return outcome

    module.run_experiment = run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.train.launch", module)
    return module


def test_train_hands_over_what_was_asked(launch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train", "cub100", "--split", "tune", "--set", "loss.scale=25", "--set", "schedule.epochs=2", "--seeds", "0,2",
        "--workers", "2..4", "--cpus-per-worker", "3", "--gpus-per-worker", "1", "--address", "auto",
        "--tracking-uri", "http://host:5000", "--data-root", "data", "--storage", "store", "--force", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    (request,) = launch.requests
    assert request.composed.config.loss.scale == 25
    assert request.composed.config.schedule.epochs == 2
    assert (request.experiment, request.split, request.seeds) == ("cub100", "tune", (0, 2))
    assert (request.workers, request.force) == (Workers(2, 4), True)
    assert request.where == Where("http://host:5000", Path("data"), Path("store"), "auto", 3, 1)
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert (answer["status"], answer["parent_run_id"], answer["tracking_uri"]) == ("finished", "p1", "sqlite:///x.db")
    assert answer["runs"][0]["metrics"] == {"test/gzsl_h": 0.25}
    assert "cub.x.s0.abc" in output.err


def test_train_without_options(
    launch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MGMRN_DATA_ROOT", "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["train", "cub-released"]) == 0
    (request,) = launch.requests
    assert (request.split, request.seeds, request.force) == (None, (214,), False)
    assert (request.where.data_root, request.where.tracking_uri) == (Path("elsewhere"), "sqlite:///.mgmrn/mlflow.db")
    assert "0.250" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("the picture is cut", "a.jpg", "get it again"), 2),
        (TrackingError("unreachable: nobody", "http://x", "start it"), 2),
        (ResourceError("8 CPUs were asked for, 2 are there", "ask for less"), 3),
    ],
)
def test_an_expected_error_is_one_sentence(
    launch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Any, code: int
) -> None:
    launch.outcome = error
    assert main(["train", "cub100"]) == code
    plain = capsys.readouterr()
    assert (plain.out, plain.err) == ("", f"error: {error}\n")
    assert main(["train", "cub100", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"error": error.message, "where": getattr(error, "where", ""), "hint": error.hint}
    monkeypatch.setenv("MGMRN_TRACEBACK", "1")
    assert main(["train", "cub100"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_store_that_is_away_is_no_mistake_of_the_user() -> None:
    error = TrackingError("unreachable: nobody", "http://x", "start it")
    assert not isinstance(error, UserError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "unreachable: nobody [http://x] (start it)"


def test_a_defect_keeps_its_traceback(launch: Any) -> None:
    launch.outcome = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["train", "cub100"])


def test_failed_cells_are_told_by_the_exit_code(launch: Any) -> None:
    launch.outcome = Outcome("failed", (), None, "sqlite:///x.db")
    assert main(["train", "cub100"]) == 1


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "cub", "--wrokers", "2"], ["train", "cub", "--split", "x"], ["fly"]]
)
def test_a_wrong_command_line_answers_in_json_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().out == ""
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("seeds", ["", "a", "1,,2", "-1", "1,1"])
def test_wrong_seeds(launch: Any, capsys: pytest.CaptureFixture[str], seeds: str) -> None:
    assert main(["train", "cub100", f"--seeds={seeds}"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert launch.requests == []


def test_config_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate"]) == 0
    assert main(["config", "show", "cub100", "--set", "seed=4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (shown["config"]["seed"], shown["provenance"]["seed"]) == (4, "--set")
    assert main(["config", "diff", "cub", "cub-released", "--json"]) == 0
    changes = {one["path"]: one for one in json.loads(capsys.readouterr().out)["changes"]}
    assert changes["schedule.order"] == {"path": "schedule.order", "before": "joint", "after": "sequential"}
    bad = tmp_path / "bad.yaml"
    bad.write_text("benchmark: {name: X}\nsed: 1\n")
    assert main(["config", "validate", "cub", str(bad), "--json"]) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert errors == {str(bad): {"error": "unknown field sed", "where": f"{bad}:2", "hint": "did you mean seed?"}}


def test_an_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cub10", "--json"]) == 2
    assert "did you mean cub100?" in json.loads(capsys.readouterr().out)["hint"]


def test_nothing_to_cache_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "cache", "cub-released"]) == 2
    assert "caches neither maps nor pictures" in capsys.readouterr().err
