"""A group where there can be no network namespaces: the same verbs, on plain processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local import __main__ as command_line
from cluster.local import namespaces
from cluster.local.hosts import HostGroup
from cluster.local.processes import _of
from pipeline.errors import ExitCode
from tests.cluster.long import only_when_asked_for
from tests.ray.command import wait_until

pytestmark = [only_when_asked_for, pytest.mark.cluster, pytest.mark.timeout(600)]

GROUP = "plain"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(namespaces, "refusal", lambda: "not root")
    return tmp_path


def verb(folder: Path, *words: str) -> int:
    """`python -m cluster.local …` in this process; its exit code."""
    arguments = [*words, "--name", GROUP, "--folder", str(folder)]
    return int(command_line.app(args=arguments, standalone_mode=False) or ExitCode.FINE)


def test_plain_hosts_join_are_lost_and_leave_nothing(local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        assert verb(local, "up", "--workers", "1") == ExitCode.FINE
        said = capfd.readouterr().err
        assert "not root" in said and "plain processes" in said, "which kind it is is said"
        hosts = HostGroup.find(GROUP, local)
        assert {one.host.name: (one.state, one.in_ray) for one in hosts.status()} == {
            "head": ("up", True),
            "w1": ("up", True),
        }
        assert verb(local, "up") == ExitCode.BAD_INPUT, "there is one of this name"
        assert verb(local, "cut", "w1") == ExitCode.CANNOT_RUN_HERE
        assert verb(local, "replace", "w1") == ExitCode.FINE
        hosts = HostGroup.find(GROUP, local)
        wait_until(lambda: {one.host.name for one in hosts.status() if one.in_ray} == {"head", "w2"}, "w1 is given up")
    finally:
        verb(local, "down")
    assert not list(local.iterdir())
    assert not _of(f"{GROUP} {hosts.group.prefix} ")
