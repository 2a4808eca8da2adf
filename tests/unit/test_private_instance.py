"""What keeps a local Ray instance to its user; `tests/ray/test_attacks.py` attacks live ones."""

from __future__ import annotations

import ast
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmrn.errors import ResourceError
from pipeline.train.private_instance import private_instance
from pipeline.train.start_checks import LONGEST_FOLDER

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHING = {
    "train": "pipeline/train/launch.py",
    "search": "pipeline/search/launch.py",
    "ablate": "pipeline/ablation/launch.py",
    "reproduce": "pipeline/models/reproduce.py",
    "demo": "pipeline/cli/demo.py",
}
"""Modules that start Ray, by verb; benchmarks run the verbs."""
OF_A_CLUSTER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "of a cluster",
    "RAY_AUTH_TOKEN_PATH": "/home/me/.ray/auth_token",
}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for temporary files that is open to all; the environment is put back."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_an_instance_gets_a_token_that_its_user_alone_can_read(shared: Path) -> None:
    with private_instance():
        environment = dict(os.environ)
        token = Path(environment["RAY_AUTH_TOKEN_PATH"])
        assert (mode(token), mode(token.parent), token.parent.parent) == (0o600, 0o700, shared)
        assert len(token.read_text()) == 64
        assert environment["RAY_TMPDIR"] == str(token.parent), "Ray makes its sockets writable by all"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "Ray would listen on all interfaces"
    assert not list(shared.iterdir())


def test_all_is_as_it_was_however_the_command_ends(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_A_CLUSTER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyboardInterrupt), private_instance():
        assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
        raise KeyboardInterrupt
    assert {name: os.environ.get(name) for name in OF_A_CLUSTER} == OF_A_CLUSTER
    assert "RAY_TMPDIR" not in os.environ
    assert not list(shared.iterdir())


def test_a_folder_for_ray_is_used_as_it_is_only_where_it_is_private(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(shared))
    with private_instance():
        assert Path(os.environ["RAY_TMPDIR"]).parent == shared
    shared.chmod(0o700)
    with private_instance():
        assert os.environ["RAY_TMPDIR"] == str(shared) and mode(os.environ["RAY_AUTH_TOKEN_PATH"]) == 0o600
    assert not list(shared.iterdir())


def test_folders_for_which_the_paths_of_sockets_are_too_long_or_that_take_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = shared / ("x" * LONGEST_FOLDER)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_instance():
        assert Path(os.environ["RAY_TMPDIR"]).parent == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/proc/x")
    with pytest.raises(ResourceError, match="Ray needs a folder in /proc/x"), private_instance():
        pass


def test_every_verb_and_benchmark_starts_ray_by_the_one_function_that_protects_it() -> None:
    files = [
        file
        for folder in ("mgmrn", "pipeline", "benchmarks", "cluster")
        for file in (REPOSITORY / folder).rglob("*.py")
    ]
    calls = {file.relative_to(REPOSITORY).as_posix(): called(file) for file in files}
    assert [file for file, names in calls.items() if "init" in names] == ["pipeline/train/cluster.py"]
    assert {file for file in LAUNCHING.values() if "ray_session" in calls[file]} == set(LAUNCHING.values())


def called(file: Path) -> set[str]:
    """Names of functions and methods that a file calls; `init` only as `ray.init`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init":
            names.add("init")
    return names
