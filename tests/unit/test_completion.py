"""Completion in a shell: bash loads the printed script and calls its own completion function."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import completion
from pipeline.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
TYPED = {"data make ": "synthetic standin", "train synthetic-a": "synthetic-attribute-network"}


def test_bash_completes_verbs_and_configs() -> None:
    lines = [completion.script("bash"), "complete -p mgmrn >&2"]
    for text in TYPED:
        words = text.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f"COMP_WORDS=(mgmrn {quoted}); COMP_CWORD={len(words)}; _mgmrn_completion; echo ${{COMPREPLY[*]}}")
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "complete -o default -F _mgmrn_completion mgmrn\n"
    assert done.stdout.splitlines() == list(TYPED.values())


def test_zsh_completes_configs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(completion.VARIABLE, "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "mgmrn search cub100-")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.strip() == """_arguments '*: :(("cub100-quick"))'"""
    assert completion.shipped("benchmark")("cub") == ["cub", "cub-standin", "cub100"]
    monkeypatch.delenv(completion.VARIABLE)
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        assert f"mgmrn() {{ {sys.executable} -m pipeline" in capsys.readouterr().out
