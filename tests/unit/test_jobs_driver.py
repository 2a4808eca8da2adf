"""What a driver learns from the job that it runs in, and of the code that was sent to it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pipeline.interruption import Interruption, raised_signals
from pipeline.job_environment import CODE_STATE, JOB_VARIABLE, in_job, job_settings, job_tags, submission_id
from pipeline.tracking.environment import GitState, git_state
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


def test_a_driver_hears_an_interrupt_that_its_cluster_would_ignore() -> None:
    """`stop` sends SIGINT, which a job inherits as ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interruption), raised_signals():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_job_tells_the_state_of_the_checkout_it_came_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    diff = "diff --git a/x b/x\n-1\n+2\ndiff --git a/ÿ b/ÿ\n-diff --git\n"
    state = GitState("1f0c9a2e", True, diff, ("new.py", "other.py"))
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": {CODE_STATE: state.to_label()}}))
    assert git_state(tmp_path) == state
    assert state.changed_files == 4
    assert GitState("1f0c9a2e", False, "", ()).changed_files == 0
