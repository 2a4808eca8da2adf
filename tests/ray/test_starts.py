"""Starts from strange folders, and starts that never come to an end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.command import REPOSITORY, Place, a_place, wait_until
from tests.ray.small import write_small

pytestmark = [pytest.mark.ray, pytest.mark.long]

LATE = 5
"""Seconds after which a stuck start is said, instead of half a minute."""
LIMIT = 30
"""Seconds after which it ends, instead of three minutes."""

SLEEPING_WORKERS = """\
#!/bin/bash
# A Python of its own virtual environment, which sleeps where Ray wants a worker.
case "$*" in
  *setup_worker.py*) ;;
  *default_worker.py*) echo "the worker fell asleep" >&2; exec sleep 300 ;;
esac
exec -a "$0" {python} "$@"
"""

IMPATIENT = f"""\
import sys
from pipeline.cli.app import main
from pipeline.train import ray_start
ray_start.LATE_SECONDS, ray_start.WORKER_SECONDS = {LATE}, {LIMIT}
raise SystemExit(main(sys.argv[1:]))
"""
"""The command line with other limits."""


def run(command: list[object], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 400}
    return subprocess.run(command, cwd=folder, env=environment, **settings)


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Place]:
    with a_place(tmp_path / "my work [1];touch ran;") as place:
        yield place


def test_a_run_from_a_checkout_whose_path_a_shell_would_split_and_run(strange: Place, tmp_path: Path) -> None:
    for package in ("mgmrn", "pipeline"):
        shutil.copytree(REPOSITORY / package, strange.folder / package)
    (strange.folder / ".venv").symlink_to(sys.prefix)
    (strange.ray_folder / "t [1]").mkdir(mode=0o700)
    environment = strange.environment | {"RAY_TMPDIR": str(strange.ray_folder / "t [1]")}
    del environment["PYTHONPATH"]
    arguments = (*write_small(strange.folder), "--storage", "the runs", "--split", "tune", "--json")
    python = strange.folder / ".venv" / "bin" / "python"
    done = run([python, "-m", "pipeline", "train", *arguments], strange.folder, environment)
    assert done.returncode == 0, done.stderr
    assert '"status": "finished"' in done.stdout
    assert list(strange.folder.glob("the runs/*/spool"))
    assert not [*tmp_path.rglob("ran"), *strange.ray_folder.rglob("ran")], "the folder's name was run"


def test_a_start_whose_workers_never_come_up_says_what_it_waits_for_and_ends(place: Place) -> None:
    venv = place.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("pyvenv.cfg", "lib"):
        (venv / name).symlink_to(Path(sys.prefix, name))
    python = venv / "bin" / "python"
    python.write_text(SLEEPING_WORKERS.format(python=sys.executable))
    python.chmod(0o755)
    done = run(
        [python, "-c", IMPATIENT, "train", *write_small(place.folder), "--json"], place.folder, place.environment
    )
    assert done.returncode == 3, done.stderr
    late = f"still waiting for the first worker process of Ray after {LATE} s; Ray's logs are in "
    assert f"{late}{place.ray_folder}/ray/session_" in done.stderr
    error, words = json.loads(done.stdout)["error"], "the worker fell asleep (raylet.err)"
    assert error == f"Ray started no worker process within {LIMIT} s; Ray's log says: {words}"
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {error}")
    assert not list(place.folder.glob(".mgmrn/runs/*/spool")), "no run was begun"
    wait_until(lambda: not place.processes(), "nothing is left running", 20)
