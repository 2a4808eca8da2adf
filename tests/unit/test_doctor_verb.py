"""Table of the doctor: faults of a machine are found, and each finding has a remedy and the right exit code."""

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline import doctor
from pipeline.doctor import GB, Line
from pipeline.errors import ExitCode
from pipeline.ports import free_port
from pipeline.storage import StoragePath


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without settings of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI", "MGMRN_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def examined(asked: Any) -> Any:
    """Runs the doctor; returns exit code, lines by their check, and the text for people."""

    def examine(*arguments: str) -> tuple[int, dict[str, dict[str, Any]], str]:
        code, answer, text = asked("doctor", *arguments)
        return code, {line["check"]: line for line in answer["lines"]}, text

    return examine


def test_a_machine_that_is_fine(here: Path, examined: Any) -> None:
    code, lines, text = examined()
    assert code == 0
    checks = {"Python", "packages", "CPUs", "memory", "shared memory", "storage", "open files", "tracking", "secrets"}
    assert checks <= lines.keys() and any(name.startswith("GPU") for name in lines)
    assert lines["data root"]["state"] == "warn" and "data make synthetic" in lines["data root"]["remedy"]
    assert all(line["remedy"] for line in lines.values() if line["state"] != "ok")
    assert "remedy" in text and not (here / ".mgmrn" / "runs").exists()


def test_named_places_that_are_wrong(here: Path, examined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("--data-root", "nowhere", "--tracking-uri", f"http://me:word@127.0.0.1:{free_port()}")
    code, lines, _ = examined(*wrong)
    assert code == ExitCode.BAD_INPUT
    assert lines["data root"]["found"] == "nowhere does not exist"
    assert "nothing answers" in lines["tracking"]["found"] and "word" not in lines["tracking"]["found"]
    assert {name for name, line in lines.items() if line["state"] == "bad"} == {"data root", "tracking"}
    code, lines, _ = examined("--address", f"127.0.0.1:{free_port()}", "--data-root", "nowhere")
    assert code == ExitCode.CANNOT_RUN_HERE and "nothing answers" in lines["Ray"]["found"]
    assert doctor.ray_line("auto").state == "warn"
    monkeypatch.setattr("pipeline.tracking.connection.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert doctor.ray_line(f"127.0.0.1:{port}").state == "ok"
        line = doctor.tracking_line(f"http://127.0.0.1:{port}")
    assert (line.state, line.code) == ("bad", ExitCode.BAD_INPUT) and "no MLflow server answers" in line.found


@pytest.mark.parametrize(("free", "state"), [(0.5, "bad"), (5, "warn"), (50, "ok")])
def test_room_on_the_disk(here: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=int(free * GB)))
    line = doctor.disk_line(StoragePath.parse(here / "runs" / "deep"))
    assert line.state == state and line.code == (ExitCode.CANNOT_RUN_HERE if state == "bad" else ExitCode.FINE)


@pytest.mark.parametrize(
    ("total", "free", "limit", "state"),
    [(16, 12, None, "ok"), (16, 2, None, "warn"), (1, 0.5, None, "bad"), (16, 12, 1, "bad"), (16, 12, 4, "warn")],
)
def test_memory_within_a_containers_limit(
    monkeypatch: pytest.MonkeyPatch, total: float, free: float, limit: float | None, state: str
) -> None:
    there = SimpleNamespace(total=int(total * GB), available=int(free * GB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
    monkeypatch.setattr(doctor, "_container_limit", lambda: None if limit is None else int(limit * GB))
    assert doctor.memory_line().state == state


def test_a_small_shared_memory_and_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no" in doctor.shared_memory_line(tmp_path / "shm").found
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=64 * 2**20))
    assert "--shm-size" in doctor.shared_memory_line(tmp_path).remedy
    for soft, state in ((1024, "warn"), (65535, "ok"), (-1, "ok")):
        monkeypatch.setattr(doctor.resource, "getrlimit", lambda which, soft=soft: (soft, -1))
        assert doctor.open_files_line().state == state


def write_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a script in the place of NVIDIA's program."""
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_gpus_that_torch_sees_or_not_and_a_driver_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_smi(
        tmp_path,
        monkeypatch,
        "".join(f"echo 'NVIDIA H100, 81559 MiB, 570.1, {mode}'\n" for mode in ("Default", "Exclusive_Process")),
    )
    monkeypatch.setattr("mgmrn.device.lacking_for_triton", lambda: "a C compiler")
    torch = SimpleNamespace(__version__="2", cuda=SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    lines = list(doctor.gpu_lines())
    assert [line.state for line in lines] == ["ok", "warn", "warn", "warn"]
    assert "--gpus-per-worker below 1" in lines[1].remedy and lines[1].remedy.endswith("nvidia-smi -i 1 -c DEFAULT")
    assert "sees 1 of 2" in lines[2].found
    assert lines[3].found == "a C compiler is missing" and "schedule.compile" in lines[3].remedy
    write_smi(tmp_path, monkeypatch, "echo 'cannot communicate with the NVIDIA driver'\nexit 9")
    (line,) = doctor.gpu_lines()
    assert line.state == "warn" and "communicate" in line.found


def test_versions_against_the_pins(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("# note\n\nray[default,train]==0.1\nnumpy<99\nmgmrn-absent-package==1\n")
    lines = {line.check: line for line in doctor.package_lines(pins)}
    assert lines["ray"].state == "warn" and "tried with ==0.1" in lines["ray"].found
    assert lines["mgmrn-absent-package"].code == ExitCode.CANNOT_RUN_HERE
    assert lines["packages"].found == "1 as in requirements.txt"
    (missing,) = doctor.package_lines(tmp_path / "none.txt")
    assert missing.state == "warn"
    states = [doctor.python_line(version).state for version in ((3, 10), (3, 11), (3, 12), (3, 14))]
    assert states == ["bad", "ok", "ok", "warn"]


def test_secrets_that_others_may_read(here: Path) -> None:
    assert next(doctor.secret_lines()).found == "no token or password file"
    token = here / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("token")
    token.chmod(0o644)
    (line,) = doctor.secret_lines()
    assert (line.state, line.code, line.remedy) == ("bad", 2, f"chmod 600 {token}")
    token.chmod(0o600)
    assert next(doctor.secret_lines()) == Line("ok", "secrets", f"you alone may read {token}")


def test_benchmarks_that_are_whole_and_those_that_lack_something(tmp_path: Path) -> None:
    lists = tmp_path / "xlsa17" / "data" / "CUB"
    lists.mkdir(parents=True)
    (lists / "res101.mat").touch()
    (line,) = doctor.benchmark_lines(tmp_path)
    assert (line.check, line.state) == ("cub", "warn")
    assert "att_splits.mat" in line.found and "word vectors" in line.found and "res101" not in line.found
    (lists / "att_splits.mat").touch()
    (tmp_path / "w2v").mkdir()
    (tmp_path / "w2v" / "CUB_attribute.pkl").touch()
    (tmp_path / "CUB").mkdir()
    assert [line.state for line in doctor.benchmark_lines(tmp_path)] == ["ok"]
    (empty,) = doctor.benchmark_lines(tmp_path / "CUB")
    assert empty.state == "warn" and "no benchmark" in empty.found
