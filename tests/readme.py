"""Every command of the README's one-machine section, run as a newcomer would run it; CI calls this file by name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def commands() -> list[str]:
    """The `python -m pipeline` lines of the section's first block, without their comments."""
    section = (ROOT / "README.md").read_text().split("## On one machine")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.S)
    assert block, "the section has a block of commands"
    lines = (line.split("#")[0].strip() for line in block.group(1).splitlines())
    return [line for line in lines if line.startswith("python ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


def test_the_section_has_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_command(command: str, folder: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
