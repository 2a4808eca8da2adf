"""The tables of docs/reference/inputs.md about configs, paths and addresses are what the code does."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.config.compose import load_experiment
from pipeline.config.yaml_tree import parse_yaml, plain
from pipeline.databases import SQLITE, database_address, sqlite_file
from pipeline.errors import TrackingError
from pipeline.redaction import redact_address
from pipeline.tracking.connection import check_reachable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "inputs.md"


def rows(section: str, heads: str) -> Iterator[list[str]]:
    """Cells of the table with these heads in a section."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    _, _, table = text.partition("\n## ")[0].partition(f"\n{heads}\n|---|---|---|\n")
    found = table.partition("\n\n")[0].splitlines()
    assert len(found) > 5
    return ([cell.strip() for cell in row.strip("|").split("|")] for row in found)


def quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def test_values_are_read_as_the_page_says() -> None:
    for written, means, value in rows("Configs and `--set`", "| written | read as | JSON |"):
        for text in quoted(written):
            if means.startswith("refused"):
                with pytest.raises(UserError):
                    parse_yaml(text, "--set")
            else:
                assert json.dumps(plain(parse_yaml(text, "--set"))) == quoted(value)[0]


def test_numbers_have_the_bounds_of_the_page() -> None:
    for field, least, most in rows("Configs and `--set`", "| field | least | most |"):
        (path,), (low,), (high,) = map(quoted, (field, least, most))
        for value in (low, high):
            load_experiment("synthetic", [f"{path}={value}"])
        beyond = [f"{float(high) * 2:.0f}", *(str(int(low) - 1) for _ in range("e" not in low))]
        for value in beyond:
            with pytest.raises(UserError, match=re.escape(f"{path} must be")):
                load_experiment("synthetic", [f"{path}={value}"])


def test_addresses_are_read_as_the_page_says() -> None:
    for written, means, shown in rows("Paths and addresses", "| address | what it is | shown as |"):
        for text in quoted(written):
            if means.startswith("refused"):
                with pytest.raises((UserError, TrackingError)) as caught:
                    check_reachable(database_address(text, "--tracking-uri"))
                assert "word" not in str(caught.value).partition(" is no tracking address")[0]
                continue
            assert redact_address(text) == quoted(shown)[0]
            if text.startswith(SQLITE):
                (file,) = quoted(means)
                assert sqlite_file(database_address(text, "")) == Path(os.path.expanduser(file)).absolute()
