"""Completion as a shell runs it: bash loads the printed script and calls its own completion function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import completion
from pipeline.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
TYPED = {
    "verbs": ["abl"],
    "verbs of a group": ["data", "make", ""],
    "experiments": ["train", "synth"],
    "choices": ["train", "cub", "--split", "f"],
    "nothing": ["train", "./no-such"],
}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What bash offers for each of these words, typed after `mgmrn`, the last one not to its end."""
    lines = [f'eval "$({sys.executable} -m pipeline completion bash)"', "complete -p mgmrn >&2"]
    for name, words in TYPED.items():
        quoted = " ".join(f"'{word}'" for word in words)
        lines += [
            f"COMP_WORDS=(mgmrn {quoted}); COMP_CWORD={len(words)}; COMPREPLY=(); _mgmrn_completion",
            f'echo "{name}: ${{COMPREPLY[*]}}"',
        ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "complete -o default -F _mgmrn_completion mgmrn\n"
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    return {name: text.split() for name, text in found.items()}


def test_bash_completes_what_there_is(answers: dict[str, list[str]]) -> None:
    assert answers == {
        "verbs": ["ablate"],
        "verbs of a group": ["synthetic", "standin"],
        "experiments": ["synthetic", "synthetic-attribute-network", "synthetic-eszsl"],
        "choices": ["final"],
        "nothing": [],
    }


def test_zsh_is_told_the_same(tmp_path: Path) -> None:
    asked = {completion.VARIABLE: "complete_zsh", "_TYPER_COMPLETE_ARGS": "mgmrn search cub100-"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline"], cwd=ROOT, env=os.environ | asked, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("""_arguments '*: :(("cub100-quick"))'""", "")


def test_names_of_shipped_configs() -> None:
    assert completion.shipped("ablation")("lev") == ["levels"]
    assert completion.shipped("benchmark")("cub") == ["cub", "cub-standin", "cub100"]


def test_the_script_defines_the_program_that_it_completes(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        assert f"mgmrn() {{ {sys.executable} -m pipeline" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 2
