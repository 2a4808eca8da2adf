"""Every row of docs/reliability.md names an existing test."""

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
def test_the_test_of_a_row_exists_and_measures_the_time_that_the_row_gives(row: str) -> None:
    named = NAMED.findall(row.split("|")[-2])
    assert named, "a row names its test"
    texts = {file: (REPOSITORY / file).read_text(encoding="utf-8") for file, _ in named}
    for file, function in named:
        functions = {node.name for node in ast.walk(ast.parse(texts[file])) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file} has no {function}"
    assert not re.search(r"\| [\d.]+ s", row) or any("time_recover" in text for text in texts.values())
