"""Answers to the wrong uses in wrong_uses.yaml: one sentence, exit code 2 or 3, and no file left behind."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.app import command
from tests.commands import VERB

RUN = "a" * 32
INPUTS = Path(__file__).parents[2] / "docs" / "reference" / "inputs.md"
CASES = yaml.safe_load(Path(__file__).with_name("wrong_uses.yaml").read_text(encoding="utf-8"))
WRONG = [(line, code, sentence) for code in (2, 3) for line, sentence in CASES[code].items()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "MGMRN_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    for name, text in CASES["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "code", "sentence"), WRONG, ids=[line for line, _, _ in WRONG])
def test_a_wrong_use_is_answered_with_a_sentence(line: str, code: int, sentence: str, folder: Path, typed: Any) -> None:
    before = sorted(folder.rglob("*"))
    found, out, err = typed(*shlex.split(line.replace("RUN", RUN)))
    pattern = "error: " + ".*".join(re.escape(part) for part in sentence.split("…")) + "\n"
    assert found == code and re.fullmatch(pattern, err), err
    assert sorted(folder.rglob("*")) == before, "a file was left behind"
    if "--json" in line:
        answer = json.loads(out)
        assert answer.keys() == {"error", "where", "hint"} and all(part in err for part in answer.values())
    else:
        assert out == ""


def test_every_verb_has_a_wrong_use_or_takes_no_argument() -> None:
    named = {line.split()[0] for line, _, _ in WRONG}
    assert command.commands.keys() - named == {"demo", "stop", "report", "doctor"}


@pytest.mark.parametrize("section", ["Text files and tables", "Matrices"])
def test_the_page_of_inputs_quotes_the_errors(section: str) -> None:
    text = INPUTS.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"\| `([^`|]+)` \|$", text.partition("What is refused")[2], re.MULTILINE)
    assert len(quoted) >= 3
    assert [one for one in quoted if not any(one in sentence for _, _, sentence in WRONG)] == []


@pytest.mark.parametrize("group", ["", "data", "data make", "config"])
def test_a_group_without_a_verb_lists_its_verbs(group: str, typed: Any) -> None:
    code, out, err = typed(*group.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: {VERB}{group}".rstrip()) and "Commands:" in err
