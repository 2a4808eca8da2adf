"""Completion in a shell: bash loads the printed script and calls its own completion function."""

import subprocess
from pathlib import Path

from pipeline.cli import completion

ROOT = Path(__file__).resolve().parents[2]
TYPED = {"data make ": "synthetic standin", "train synthetic-a": "synthetic-attribute-network"}


def test_bash_completes_verbs_and_configs() -> None:
    lines = [completion.script("bash"), "complete -p mgmrn >&2"]
    for text in TYPED:
        words = text.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f"COMP_WORDS=(mgmrn {quoted}); COMP_CWORD={len(words)}; _mgmrn_completion; echo ${{COMPREPLY[*]}}")
    command = ["bash", "--norc", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "complete -o default -F _mgmrn_completion mgmrn\n"
    assert done.stdout.splitlines() == list(TYPED.values())
