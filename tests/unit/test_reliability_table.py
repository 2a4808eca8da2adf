"""Every row of docs/reliability.md is a test that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("|") and not re.match(r"\|[-|]+\|$|\| (Fault|What|Trap) ", line)
]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip().replace("`", "")[:40])
def test_the_test_of_a_row_exists(row: str) -> None:
    named = NAMED.findall(row.split("|")[-2])
    assert named, "a row names its test"
    for file, function in named:
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file} has no {function}"


@pytest.mark.parametrize(
    "row", [row for row in ROWS if re.search(r"\| [\d.]+ s", row)], ids=lambda row: row.split("|")[1].strip()[:40]
)
def test_a_time_to_recover_is_measured_by_the_tests_of_its_row(row: str) -> None:
    files = {file for file, _ in NAMED.findall(row.split("|")[-2])}
    assert any("time_recover" in (REPOSITORY / file).read_text(encoding="utf-8") for file in files)
