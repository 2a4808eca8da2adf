"""A site of several hosts on one machine: the hosts, a tracking server beside them, a shared folder, a clean clone."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pipeline.spool import Entry, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.connection import PASSWORD_VARIABLE, USERNAME_VARIABLE
from tests.cluster.tracking import tracking_server
from tests.hosts.group import HostGroup, host_group
from tests.ray.command import REPOSITORY
from tests.ray.small import write_small

RAY = Path(sys.executable).with_name("ray")


class Job:
    """A job that was submitted from the clone, and is followed."""

    def __init__(self, site: Site, arguments: tuple[str, ...]) -> None:
        self._log = tempfile.NamedTemporaryFile(dir=site.shared, delete=False)  # noqa: SIM115
        entrypoint = ["python", "-m", "pipeline", *arguments]
        self.process = subprocess.Popen(
            [str(RAY), "job", "submit", "--working-dir", str(site.clone), "--", *entrypoint],
            env=os.environ | site.hosts.head.client_environment,
            cwd=site.shared,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def errors_so_far(self) -> str:
        """Output so far, of Ray and of the driver."""
        return Path(self._log.name).read_text(errors="replace")

    def end(self) -> None:
        assert self.process.wait(400) == 0, self.errors_so_far()

    def leave(self) -> None:
        self.process.kill()
        self.process.wait(30)


@dataclass(frozen=True)
class Site:
    hosts: HostGroup
    shared: Path
    experiment: Path
    clone: Path
    tracking_uri: str

    def submit(self, verb: str, *arguments: str) -> Job:
        """`ray job submit` of a verb, from the clone, with everything that must outlive a host on the shared folder."""
        folders = ("--data-root", str(self.shared / "data"), "--storage", str(self.shared / "runs"))
        return Job(self, (verb, *arguments, *folders, "--tracking-uri", self.tracking_uri))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def _noted(self, pattern: str) -> list[Entry]:
        entries = (
            one
            for folder in sorted(self.shared.glob(f"runs/{pattern}/spool"))
            for one in Spool(StoragePath.parse(folder.parent)).read()
        )
        return [entry for entry in entries if entry.kind == "metrics"]

    def epochs_noted(self, pattern: str) -> list[int]:
        """Steps in the spools of some runs, in the order in which they were noted."""
        return [entry.content["step"] for entry in self._noted(pattern)]

    def workers_noted(self, pattern: str) -> list[int]:
        """Workers of those epochs."""
        return [int(entry.content["metrics"]["perf/world_size"]) for entry in self._noted(pattern)]

    def ranks(self, host: str) -> list[int]:
        """Process ids, on this machine, of the ranks of a run that a host holds now."""
        found = []
        for pid in self.hosts.namespaces.processes(host):
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(psutil.Process(pid).cmdline()):
                    found.append(pid)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A head and two workers of one CPU each; skips where there can be no namespaces."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write_small(shared)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{REPOSITORY}", str(tmp_path / "clone")], check=True)
    login = {USERNAME_VARIABLE: "admin", PASSWORD_VARIABLE: secrets.token_hex(16)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in login.items():
            patch.setenv(name, value)
        with host_group(tmp_path / "hosts", 2) as hosts, tracking_server(hosts.namespaces.gateway, login) as server:
            yield Site(hosts, shared, shared / "small.yaml", tmp_path / "clone", server.uri)
