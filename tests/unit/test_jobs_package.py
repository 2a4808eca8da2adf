"""What is sent to a cluster: little, all that the driver needs, and the same bytes for the same files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from mgmrn.errors import UserError
from pipeline.config.files import CONFIGS
from pipeline.jobs.package import make_package
from pipeline.jobs.submit import CHECKOUT, RUNTIME_ENV, read_runtime_env
from pipeline.tracking.environment import SHIPPED_STATE, GitState

CLEAN = GitState("1f0c9a2e", False, "", ())
PLAIN_LIMIT = 1536 * 1024
"""Bytes that `ray job submit --working-dir .` may send: it does not compress."""
LIMIT = 512 * 1024
"""Bytes that `submit` may send."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    sent = ("pipeline/a.py", "pipeline/config/configs/x.yaml", "mgmrn/b.py", "my.yaml")
    left = ("mgmrn/out/x", "mgmrn/__pycache__/b.pyc", "tests/t.py", "mlflow.db", "data/y.yaml", ".git/HEAD", ".venv/x")
    for name in (*sent, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("out/\n")
    shutil.copyfile(CHECKOUT / ".rayignore", folder / ".rayignore")
    return folder


def packed_in(folder: Path, checkout: Path, state: GitState = CLEAN):
    folder.mkdir()
    return make_package(checkout, state, folder)


def test_the_code_and_configs_are_sent_and_all_else_stays_behind(checkout: Path, tmp_path: Path) -> None:
    package = packed_in(tmp_path / "1", checkout)
    assert package.names == {"pipeline/a.py", "pipeline/config/configs/x.yaml", "mgmrn/b.py", "my.yaml"}
    package.check_holds("my.yaml")
    package.check_holds("./pipeline/../my.yaml")
    for absent in ("data/y.yaml", "../elsewhere.yaml", str(checkout / "my.yaml")):
        with pytest.raises(UserError, match="not among the files"):
            package.check_holds(absent)


def test_the_same_files_are_the_same_upload(checkout: Path, tmp_path: Path) -> None:
    first = packed_in(tmp_path / "1", checkout)
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    os.utime(copy / "my.yaml", (0, 10**9))
    (copy / "tests" / "t.py").write_text("changed")
    second = packed_in(tmp_path / "2", copy)
    assert second.digest == first.digest and second.file.read_bytes() == first.file.read_bytes()

    other_commit = packed_in(tmp_path / "3", checkout, GitState("other", True, "diff", ()))
    assert other_commit.digest == first.digest
    with ZipFile(other_commit.file) as packed:
        assert json.loads(packed.read(SHIPPED_STATE))["sha"] == "other"

    (copy / "my.yaml").write_text("changed")
    assert packed_in(tmp_path / "4", copy).digest != first.digest


def test_this_checkout_is_a_small_upload_and_runs_from_it(tmp_path: Path) -> None:
    plain = tmp_path / "plain.zip"
    create_package(str(CHECKOUT), plain, include_gitignore=True, logger=logging.getLogger("quiet"))
    package = packed_in(tmp_path / "ours", CHECKOUT)
    with ZipFile(plain) as packed:
        assert package.names == {name for name in packed.namelist() if not name.endswith("/")}
    assert plain.stat().st_size < PLAIN_LIMIT and package.file.stat().st_size < LIMIT

    places = {name.partition("/")[0] for name in package.names}
    assert places == {"mgmrn", "pipeline", "pyproject.toml", "requirements.txt"}
    shipped = {file.relative_to(CHECKOUT).as_posix() for file in CONFIGS.rglob("*.yaml")}
    assert shipped <= package.names

    there = tmp_path / "job"
    with ZipFile(package.file) as packed:
        packed.extractall(there)
    code = "from pipeline.tracking.environment import git_state; from pipeline.cli.app import main; import sys\n"
    code += "print(git_state().sha, file=sys.stderr); sys.exit(main(['config', 'validate', '--json']))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=there, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"errors": {}} and done.stderr.startswith(CLEAN.sha)


def test_the_runtime_environment_holds_no_secrets(tmp_path: Path) -> None:
    assert read_runtime_env(CHECKOUT / RUNTIME_ENV)["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    file = tmp_path / "env.yaml"
    for text, sentence in [
        ("env_vars: {MLFLOW_TRACKING_PASSWORD: word}", "env_vars.MLFLOW_TRACKING_PASSWORD"),
        ("[1]", "is a mapping"),
        ("{", "cannot read"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            read_runtime_env(file)
        assert sentence in str(caught.value) and "word" not in str(caught.value).replace("PASSWORD", "")
    with pytest.raises(UserError, match="cannot read"):
        read_runtime_env(tmp_path / "absent.yaml")
