"""Start of Ray and of a process group here: checks before it, protection (`tests/ray/test_attacks.py` attacks it), and waits that end."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mgmrn.errors import ResourceError
from pipeline.doctor import ray_line
from pipeline.errors import ExitCode
from pipeline.ports import LOOPBACK, free_port
from pipeline.storage import StoragePath
from pipeline.train import process_group, ray_start
from pipeline.train.cluster import ray_session
from pipeline.train.process_group import GLOO_INTERFACE, rendezvous, use_network_of_ray
from pipeline.train.ray_start import LONGEST_FOLDER, check_temporary_folder, last_error, private_instance

OF_A_CLUSTER = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "old", "RAY_AUTH_TOKEN_PATH": "/home/me/.ray/auth_token"}
STRANGE = 'my work (1) [b];touch ran;$(touch ran);"a" & b'
"""Name of a folder that a shell would split and run."""


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that is open to all, and short enough for Ray's sockets; the environment is put back."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_a_shell_starts_the_interpreter_of_a_strange_path_and_runs_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / STRANGE
    folder.mkdir()
    python = folder / "python"
    python.symlink_to(sys.executable)
    line = f"exec {ray_start.worker_interpreter(str(python))['py_executable']} -c 'import sys; print(sys.argv[0])'"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "-c\n"
    assert not (tmp_path / "ran").exists()
    assert ray_start.worker_interpreter("/data/work/.venv/bin/python3.11") == {}


@pytest.mark.parametrize("name", ["it's", "a\\b", "a\nb"])
def test_a_path_that_ray_cannot_carry_is_refused(name: str) -> None:
    ray_start.check_paths([f"/data/{STRANGE}/.venv/bin/python"])
    with pytest.raises(ResourceError, match="move or clone the checkout"):
        ray_start.check_paths([f"/data/{name}/.venv/bin/python"])
    with pytest.raises(ResourceError, match="set TMPDIR"):
        check_temporary_folder(Path("/tmp") / name)


def test_a_temporary_folder_too_long_for_sockets_or_that_cannot_be_written_to_is_refused(shared: Path) -> None:
    longest = shared / ("ü [1];c" + "x" * (LONGEST_FOLDER - len(str(shared)) - 9))
    longest.mkdir()
    check_temporary_folder(longest)
    sentence = rf"has {LONGEST_FOLDER + 1} bytes, and Ray's sockets need one of {LONGEST_FOLDER}"
    with pytest.raises(ResourceError, match=sentence):
        check_temporary_folder(Path(f"{longest}x"))
    (shared / "a file").touch()
    for folder in (shared / "a file", Path("/proc")):
        with pytest.raises(ResourceError, match=f"Ray cannot write into {folder}: .*make room there"):
            check_temporary_folder(folder)


def test_a_limit_of_address_space_is_refused_below_what_ray_maps() -> None:
    """With 24.7 GB of memory, the raylet of Ray 2.60 died of `mmap failed` at 13.3 GB."""
    memory = 24_700_000_000
    assert ray_start.needed_address_space(memory) == 15_820_000_000
    ray_start.check_address_space(-1, memory)
    ray_start.check_address_space(ray_start.needed_address_space(memory), memory)
    with pytest.raises(ResourceError, match=r"limited to 13.3 GB a process .* map up to 15.8 GB .*ulimit -v unlimited"):
        ray_start.check_address_space(13_312_000_000, memory)


def test_a_session_and_the_doctor_refuse_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_start.check_start_here()
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sentence = r"no Ray cluster could be reached at 127.0.0.1:1.*--address"
    with pytest.raises(ResourceError, match=sentence), ray_session("127.0.0.1:1"):
        pass
    monkeypatch.setattr(sys, "executable", "/data/it's/.venv/bin/python")
    with pytest.raises(ResourceError, match="Ray cannot start processes from"), ray_session(None):
        pass
    line = ray_line(None)
    assert (line.state, line.code) == ("bad", ExitCode.CANNOT_RUN_HERE)
    assert "it's" in line.found and "move or clone the checkout" in line.remedy


def test_an_instance_gets_a_token_that_its_user_alone_can_read(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is restored however the command ends."""
    for name, value in OF_A_CLUSTER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyboardInterrupt), private_instance():
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert (mode(token), mode(token.parent), token.parent.parent) == (0o600, 0o700, shared)
        assert len(token.read_text()) == 64
        assert os.environ["RAY_TMPDIR"] == str(token.parent), "Ray makes its sockets writable by all"
        assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "Ray would listen on all interfaces"
        raise KeyboardInterrupt
    assert {name: os.environ.get(name) for name in OF_A_CLUSTER} == OF_A_CLUSTER
    assert "RAY_TMPDIR" not in os.environ
    assert not list(shared.iterdir())


def test_a_folder_for_ray_is_used_as_it_is_only_if_it_is_private(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(shared))
    with private_instance():
        assert Path(os.environ["RAY_TMPDIR"]).parent == shared
    shared.chmod(0o700)
    with private_instance():
        assert os.environ["RAY_TMPDIR"] == str(shared) and mode(os.environ["RAY_AUTH_TOKEN_PATH"]) == 0o600
    assert not list(shared.iterdir())


def test_folders_for_which_the_paths_of_sockets_are_too_long_or_that_take_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = shared / ("x" * LONGEST_FOLDER)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_instance():
        assert Path(os.environ["RAY_TMPDIR"]).parent == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/proc/x")
    with pytest.raises(ResourceError, match="Ray needs a folder in /proc/x"), private_instance():
        pass


STACK = "/opt/venv/ray/raylet(+0x263cb7) [0x564243b94cb7]\n"
RAYLET = """\
[2026-11-27 19:20:52,752 I 3354 3354] (raylet) main.cc:300: Raylet is up
[2026-11-27 19:20:58,752 E 3354 3377] (raylet) agent_manager.cc:87: One Ray agent failed, agent_name = dashboard_agent.
[2026-11-27 19:21:13,926 C 3354 3354] (raylet) node_manager.cc:3576:  You have likely discovered a bug in Ray. Check failed
[2026-11-27 19:21:14,100 I 3354 3354] (raylet) main.cc:900: Raylet is down
"""
AGENT = "2026-11-27 19:12:29,473\tINFO runtime_env_agent.py:593 -- Created\n2026-11-27 19:12:30,1\tERROR a.py:1 -- No room\n"


def test_an_error_is_found_among_what_ray_logs(tmp_path: Path) -> None:
    assert last_error(tmp_path) is None
    (tmp_path / "runtime_env_agent.log").write_text(AGENT)
    assert last_error(tmp_path) == "No room (runtime_env_agent.log)"
    late = "[2026-11-27 19:20:58,752 W 1 1] (raylet) a.cc:1: Some workers have not registered\n"
    (tmp_path / "gcs_server.out").write_text(late)
    assert last_error(tmp_path) == "Some workers have not registered (gcs_server.out)"
    (tmp_path / "worker-1.err").write_text(":job_id:01000000\n:actor_name:RayTrainWorker\n")
    (tmp_path / "raylet.out").write_text(RAYLET)
    (tmp_path / "raylet.err").write_text(f"\n- The agent is killed by the OS.\n{STACK}")
    assert last_error(tmp_path) == "One Ray agent failed, agent_name = dashboard_agent. (raylet.out)"
    (tmp_path / "raylet.err").write_text(f"bash: line 1: /data/my: No such file or directory\n{STACK}")
    assert last_error(tmp_path) == "bash: line 1: /data/my: No such file or directory (raylet.err)"


def test_ranks_that_do_not_begin_end_the_wait_with_rays_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    names = (f"session_2026-11-27_19-00-00_000000_{os.getpid()}", "session_2026-11-27_20-00-00_000000_1")
    logs, others = (tmp_path / "ray" / name / "logs" for name in names)
    logs.mkdir(parents=True)
    others.mkdir(parents=True)
    monkeypatch.setattr(ray_start, "LATE_SECONDS", 0.05)
    monkeypatch.setattr(ray_start, "RANKS_SECONDS", 0.2)
    (logs / "raylet.err").write_text("No space left on device\n")
    said: list[str] = []
    run: Future[None] = Future()
    with pytest.raises(ResourceError, match=r"no worker of the run began within 0 s; Ray's log says: No space left"):
        ray_start.await_ranks(run, StoragePath.parse(tmp_path / "begun"), said.append)
    assert len(said) == 1 and said[0].startswith("still waiting for the workers of the run after 0 s")
    (tmp_path / "begun").touch()
    ray_start.await_ranks(run, StoragePath.parse(tmp_path / "begun"), said.append)
    run.set_result(None)
    ray_start.await_ranks(run, StoragePath.parse(tmp_path / "never"), said.append)


INTERFACES = {"lo": ("127.0.0.1",), "mgmt0": ("02:00:00:00:00:01", "192.168.7.4"), "ib0": ("10.0.3.4", "fe80::3%ib0")}


@pytest.mark.parametrize(
    ("node", "given", "used"),
    [("10.0.3.4", None, "ib0"), ("fe80::3", None, "ib0"), ("10.0.3.4", "mgmt0", "mgmt0"), ("203.0.113.9", None, None)],
    ids=["that of Ray", "IPv6", "the owner's choice stays", "behind an address translation gloo is left alone"],
)
def test_gloo_gets_rays_interface(
    node: str, given: str | None, used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = {name: [SimpleNamespace(address=one) for one in found] for name, found in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: hosts)
    monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(os, "environ", {GLOO_INTERFACE: given} if given else {})
    use_network_of_ray()
    assert os.environ.get(GLOO_INTERFACE) == used


def test_the_ranks_meet_at_the_address_of_ray_alone() -> None:
    port = free_port()
    store = rendezvous((LOOPBACK, port), 0, 1)
    found = [one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.laddr.port == port]
    assert LOOPBACK in found and not {"0.0.0.0", "::"} & set(found)
    store.set("key", "value")
    assert store.get("key") == b"value"
