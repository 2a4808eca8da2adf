"""The commands of the README's first two blocks, run in this checkout in their order; CI names this file."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import places
from pipeline.tracking.store import TrackingStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = ("make test", "source")
"""`make test` is a step of CI by itself; the virtual environment is the one that runs this."""


def commands() -> list[str]:
    """Commands of the sections "Two commands" and "On one machine", without comments."""
    text = (ROOT / "README.md").read_text()
    found = []
    for heading in ("## Two commands", "## On one machine"):
        block = re.search(r"```sh\n(.*?)```", text.split(heading)[1], re.S)
        assert block, f"{heading} has a block of commands"
        lines = (line.split("#")[0].strip() for line in block.group(1).splitlines())
        found += [line for line in lines if line and not line.startswith(ELSEWHERE)]
    assert found[0] == "make demo" and len(found) >= 9
    return found


@pytest.mark.parametrize("command", commands())
def test_command(command: str):
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable if program == "python" else program, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_notebook_shows_a_table_curves_and_a_paired_difference(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs" / "tutorial" / "analysis.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "analysis.ipynb", "exec"), names)
    assert {"mgmrn", "no_agreement"} <= set(names["final"]["variant"]) and names["figures"][0] in names["runs"]
    assert len(names["plt"].gca().lines) == 3 and len(names["history"]) > 1
    assert 0 in names["scores"].index


def test_attention_of_the_demos_network_points_at_the_parts(monkeypatch, typed):
    """Three times as often as a random pixel, in the strongest attribute of each of the 12 groups in 400 pictures of unseen classes."""
    monkeypatch.chdir(ROOT)
    tags = {"benchmark": "SYN", "variant": "mgmrn", "split": "final", "seed": "0"}
    wanted = " and ".join(f"tags.`mgmrn.{key}` = '{value}'" for key, value in tags.items())
    runs = TrackingStore.connect(places.TRACKING_URI).runs_of(("mgmrn/%",), wanted)
    run = next((run for run in runs if run.status == "FINISHED"), None)
    assert run is not None, "`make demo` comes first"
    answer = json.loads(typed("explain", run.run_id, "--json")[1])
    assert answer["run_id"] == run.run_id and len(answer["pictures"]) == 20
    assert answer["pointing"]["all levels"]["all parts"]["maps"] == 4800
    assert answer["pointing_accuracy"] >= 3 * answer["pointing_chance"] > 0
