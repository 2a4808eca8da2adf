"""A start that waits says so, and one that waits too long ends with what Ray's own log says."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mgmrn.errors import ResourceError
from pipeline.train.start_watch import await_ranks, last_error, said_when_late, where_logs_are

STACK = "/opt/venv/ray/raylet(+0x263cb7) [0x564243b94cb7]\n"
RAYLET = """\
[2026-11-27 19:20:52,752 I 3354 3354] (raylet) main.cc:300: Raylet is up
[2026-11-27 19:20:58,752 E 3354 3377] (raylet) agent_manager.cc:87: One Ray agent failed, agent_name = dashboard_agent.
[2026-11-27 19:21:13,926 C 3354 3354] (raylet) node_manager.cc:3576:  You have likely discovered a bug in Ray. Check failed
[2026-11-27 19:21:14,100 I 3354 3354] (raylet) main.cc:900: Raylet is down
"""
AGENT = "2026-11-27 19:12:29,473\tINFO runtime_env_agent.py:593 -- Created\n2026-11-27 19:12:30,1\tERROR a.py:1 -- No room\n"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Log folder of an instance of Ray that this process started."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in (f"session_2026-11-27_19-00-00_000000_{os.getpid()}", "session_2026-11-27_20-00-00_000000_1"):
        (tmp_path / "ray" / name / "logs").mkdir(parents=True)
    return tmp_path / "ray" / f"session_2026-11-27_19-00-00_000000_{os.getpid()}" / "logs"


def test_an_error_is_found_among_what_ray_logs(tmp_path: Path) -> None:
    assert last_error(tmp_path) is None
    (tmp_path / "runtime_env_agent.log").write_text(AGENT)
    assert last_error(tmp_path) == "No room (runtime_env_agent.log)"
    (tmp_path / "gcs_server.out").write_text(
        "[2026-11-27 19:20:58,752 W 1 1] (raylet) a.cc:1: Some workers have not registered\n"
    )
    assert last_error(tmp_path) == "Some workers have not registered (gcs_server.out)"
    (tmp_path / "worker-1.err").write_text(":job_id:01000000\n:actor_name:RayTrainWorker\n")
    (tmp_path / "raylet.out").write_text(RAYLET)
    (tmp_path / "raylet.err").write_text(f"\n- The agent is killed by the OS.\n{STACK}")
    assert last_error(tmp_path) == "One Ray agent failed, agent_name = dashboard_agent. (raylet.out)"
    (tmp_path / "raylet.err").write_text(f"bash: line 1: /data/my: No such file or directory\n{STACK}")
    assert last_error(tmp_path) == "bash: line 1: /data/my: No such file or directory (raylet.err)"


def test_what_is_waited_for_is_said_once_with_the_place_of_the_logs(logs: Path) -> None:
    said: list[str] = []
    heard = threading.Event()
    with said_when_late("Ray", 0.01, lambda text: (said.append(text), heard.set())[0]):
        assert heard.wait(10)
    assert said == [f"still waiting for Ray after 0 s; Ray's logs are in {logs}"]
    with said_when_late("Ray", 60, said.append):
        pass
    assert len(said) == 1


def test_without_a_session_on_this_host_the_hosts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert where_logs_are() == "Ray's logs are in /tmp/ray/session_latest/logs of its hosts"


def test_ranks_that_do_not_begin_end_the_wait_with_rays_own_words(logs: Path, tmp_path: Path) -> None:
    (logs / "raylet.err").write_text("No space left on device\n")
    said: list[str] = []
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(60,))
    thread.start()
    try:
        with pytest.raises(
            ResourceError, match=r"no worker of the run began within 0 s; Ray's log says: No space left"
        ):
            await_ranks(thread, tmp_path / "begun", said.append, limit=0.2, late=0.05)
        assert len(said) == 1 and said[0].startswith("still waiting for the workers of the run after 0 s")
        (tmp_path / "begun").touch()
        await_ranks(thread, tmp_path / "begun", said.append, limit=0)
    finally:
        over.set()
        thread.join()
    await_ranks(thread, tmp_path / "never", said.append, limit=0)
