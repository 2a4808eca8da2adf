"""What a driver learns from the job that it runs in, and from the folder that was shipped to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.job_environment import JOB_VARIABLE, in_job, job_settings, job_tags, submission_id
from pipeline.tracking.environment import SHIPPED_STATE, GitState, git_state
from pipeline.train.cluster import _ENVIRONMENT, _runtime_env


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_a_driver_knows_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (in_job(), submission_id(), job_tags(), job_settings()) == (False, None, {}, {})
    job = {"metadata": {"job_submission_id": "mgmrn-1"}, "runtime_env": {"env_vars": {"A": "1"}}}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps(job))
    assert (in_job(), submission_id(), job_settings()) == (True, "mgmrn-1", {"A": "1"})
    assert job_tags() == {"mgmrn.ray_submission_id": "mgmrn-1"}


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"metadata": 3, "runtime_env": {"env_vars": null}}'])
def test_a_job_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(JOB_VARIABLE, text)
    assert (in_job(), submission_id(), dict(job_settings())) == (True, None, {})


def test_hosts_get_the_code_and_the_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = _runtime_env()
    assert outside.keys() == {"env_vars", "working_dir"} and outside["env_vars"] == _ENVIRONMENT
    set_already = next(iter(_ENVIRONMENT))
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {"env_vars": {set_already: "5"}}}))
    inside = _runtime_env()
    assert inside == {"env_vars": {name: _ENVIRONMENT[name] for name in _ENVIRONMENT if name != set_already}}


@pytest.mark.parametrize("job", [True, False])
def test_a_driver_hears_an_interrupt_that_its_cluster_would_ignore(job: bool) -> None:
    code = "import signal; from pipeline.cli.app import main; main(['--help']); print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | ({JOB_VARIABLE: "{}"} if job else {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("default_int_handler" in done.stdout.splitlines()[-1]) == job


def test_a_shipped_folder_tells_the_state_of_the_checkout_it_came_from(tmp_path: Path) -> None:
    diff = "diff --git a/x b/x\n-1\n+2\ndiff --git a/ÿ b/ÿ\n-diff --git\n"
    state = GitState("1f0c9a2e", True, diff, ("new.py", "other.py"))
    (tmp_path / SHIPPED_STATE).write_text(state.to_json(), encoding="utf-8")
    assert git_state(tmp_path) == state
    assert state.changed_files == 4
    assert GitState("1f0c9a2e", False, "", ()).changed_files == 0
