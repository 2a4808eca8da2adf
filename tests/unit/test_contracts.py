"""Rules of the code that a parser can check: no private names and no private modules of other packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = ("mgmrn", "pipeline", "cluster", "benchmarks")
DOCUMENTED = frozenset({"_asdict", "_replace", "_fields", "_exit"})
"""Public names of named tuples, which cannot do without the underscore, and `os._exit`."""


def private(name: str) -> bool:
    return name.startswith("_") and name not in DOCUMENTED and not (name.startswith("__") and name.endswith("__"))


def own_names(tree: ast.Module) -> set[str]:
    """Private attributes that the classes of a file define or set on `self`."""
    found = set()
    for node in (one for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for one in ast.walk(kind)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and is_own(node.value):
            found.add(node.attr)
    return found


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_private_names(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    label, own = str(path.relative_to(REPOSITORY)), own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [*node.module.split("."), *(one.name for one in node.names)]
            yield from (f"{label}: {name}" for name in names if private(name) and names[0] not in OURS)
        elif isinstance(node, ast.Import):
            yield from (f"{label}: {one.name}" for one in node.names if any(map(private, one.name.split("."))))
        elif isinstance(node, ast.Attribute) and private(node.attr) and not is_own(node.value) and node.attr not in own:
            yield f"{label}: {node.attr}"


def test_no_private_name_of_another_package_is_used() -> None:
    files = [path for folder in OURS for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    found = {name for path in files for name in foreign_private_names(path)}
    assert found == set()


def test_a_private_name_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tests.unit.test_contracts.REPOSITORY", tmp_path)
    file = tmp_path / "x.py"
    file.write_text(
        "import ray._private\nfrom mlflow._x import y\nfrom optuna import _z\ntrial._trial_id\nself._fine\n"
    )
    assert set(foreign_private_names(file)) == {"x.py: ray._private", "x.py: _x", "x.py: _z", "x.py: _trial_id"}
