"""What keeps Ray from starting on this machine is one sentence before the start, for doctor and for every verb."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mgmrn.errors import ResourceError
from pipeline.doctor.services import ray_line
from pipeline.errors import ExitCode
from pipeline.train.cluster import ray_session
from pipeline.train.private_instance import private_instance
from pipeline.train.start_checks import (
    LONGEST_FOLDER,
    check_address_space,
    check_paths,
    check_start_here,
    check_temporary_folder,
    needed_address_space,
    worker_interpreter,
)
from tests.tmpfs import TMPFS, remounted, small_disk

STRANGE = 'my work (1) [b];touch ran;$(touch ran);"a" & b'
"""A folder's name that a shell would split and run."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder that is short enough for Ray's sockets, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def test_this_machine_passes() -> None:
    check_start_here()


def test_a_shell_starts_the_interpreter_of_a_strange_path_and_runs_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / STRANGE
    folder.mkdir()
    python = folder / "python"
    python.symlink_to(sys.executable)
    line = f"exec {worker_interpreter(str(python))['py_executable']} -c 'import sys; print(sys.argv[0])'"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "-c\n"
    assert not (tmp_path / "ran").exists()


def test_a_plain_interpreter_is_left_to_ray() -> None:
    assert worker_interpreter("/data/work/.venv/bin/python3.11") == {}


@pytest.mark.parametrize("name", ["it's", "a\\b", "a\nb"])
def test_a_path_that_ray_cannot_carry_is_refused(name: str) -> None:
    check_paths([f"/data/{STRANGE}/.venv/bin/python"])
    with pytest.raises(ResourceError, match="move or clone the checkout"):
        check_paths([f"/data/{name}/.venv/bin/python"])
    with pytest.raises(ResourceError, match="set TMPDIR"):
        check_temporary_folder(Path("/tmp") / name)


def test_a_folder_of_ray_may_have_spaces_and_brackets(short: Path) -> None:
    folder = short / "a b [1];c"
    folder.mkdir()
    check_temporary_folder(folder)


def test_a_folder_too_long_for_sockets_is_refused_at_the_first_byte_too_many(short: Path) -> None:
    most = short / ("ü" + "x" * (LONGEST_FOLDER - len(str(short)) - 3))
    most.mkdir()
    check_temporary_folder(most)
    with pytest.raises(
        ResourceError, match=rf"has {LONGEST_FOLDER + 1} bytes, and Ray's sockets need one of {LONGEST_FOLDER}"
    ):
        check_temporary_folder(Path(f"{most}x"))


def test_a_file_in_the_place_of_rays_folder_is_refused(short: Path) -> None:
    (short / "file").touch()
    with pytest.raises(ResourceError, match=f"Ray cannot write into {short}/file: Not a directory"):
        check_temporary_folder(short / "file")


@TMPFS
def test_a_read_only_folder_of_ray_is_refused_before_the_token_is_written(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = short / "disk"
    monkeypatch.setenv("RAY_TMPDIR", str(disk))
    refused = pytest.raises(ResourceError, match=f"Ray cannot write into {disk}: Read-only file system")
    with small_disk(disk, 1):
        disk.chmod(0o700)
        with remounted(disk, "ro"), refused, private_instance():
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """Root may write everywhere, so another process asks as the user nobody."""
    code = (
        "import os, pathlib, pipeline.train.start_checks as checks; os.setgid(65534); os.setuid(65534)\n"
        "try: checks.check_temporary_folder(pathlib.Path('/'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "Ray cannot write into /: Permission denied (make room there and make it writable to you"
    )


def test_a_limit_of_address_space_is_refused_below_what_ray_maps() -> None:
    """With 24.7 GB of memory, the raylet of Ray 2.60 died of `mmap failed` at 13.3 GB."""
    memory = 24_700_000_000
    assert needed_address_space(memory) == 15_820_000_000
    check_address_space(-1, memory)
    check_address_space(needed_address_space(memory), memory)
    with pytest.raises(ResourceError, match=r"limited to 13.3 GB a process .* map up to 15.8 GB .*ulimit -v unlimited"):
        check_address_space(13_312_000_000, memory)


def test_every_session_and_doctor_refuse_before_ray_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def never(**settings: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", never)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "executable", "/data/it's/.venv/bin/python")
    with pytest.raises(ResourceError, match="Ray cannot start processes from"), ray_session(None):
        pass
    line = ray_line(None)
    assert (line.state, line.code) == ("bad", ExitCode.CANNOT_RUN_HERE)
    assert "it's" in line.found and "move or clone the checkout" in line.remedy
