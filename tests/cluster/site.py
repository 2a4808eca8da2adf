"""A site of several hosts on one machine: the hosts, a tracking server beside them, a shared folder, a clean clone."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mgmrn.makers.synthetic import make_synthetic
from pipeline.tracking.connection import PASSWORD_VARIABLE, USERNAME_VARIABLE
from tests.cluster.tracking import tracking_server
from tests.hosts.group import HostGroup, host_group
from tests.ray.command import REPOSITORY
from tests.ray.small import EXPERIMENT

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

    def log(self) -> str:
        """Output so far, of Ray and of the driver."""
        return Path(self._log.name).read_text(errors="replace")

    def errors_so_far(self) -> str:
        """Output so far, under the name that `wait_until` uses."""
        return self.log()

    def end(self, timeout: float = 400) -> None:
        """Waits for its success."""
        assert self.process.wait(timeout) == 0, self.log()

    def leave(self) -> None:
        """No longer follows it."""
        self.process.kill()
        self.process.wait(30)


@dataclass(frozen=True)
class Site:
    hosts: HostGroup
    shared: Path
    """Seen by every host, as all folders are."""
    experiment: Path
    """A small one, on synthetic pictures, in the shared folder."""
    clone: Path
    tracking_uri: str

    def submit(self, verb: str, *arguments: str) -> Job:
        """`ray job submit` of a verb, from the clone, with everything that must outlive a host on the shared folder."""
        places = {
            "--data-root": str(self.shared / "data"),
            "--storage": str(self.shared / "runs"),
            "--tracking-uri": self.tracking_uri,
        }
        return Job(self, (verb, *arguments, *(word for pair in places.items() for word in pair)))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def runs(self, experiment: str) -> list[Run]:
        """All runs of an MLflow experiment, oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None, f"no experiment {experiment}"
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))

    def steps(self, run: Run, *keys: str) -> dict[str, list[int]]:
        """Steps of some metrics, or of all, in the order in which they were logged."""
        wanted = [key for key in run.data.metrics if not keys or key in keys]
        return {key: [m.step for m in self.client.get_metric_history(run.info.run_id, key)] for key in wanted}

    def epochs_noted(self, pattern: str) -> list[int]:
        """Steps in the spools of some runs, in the order in which they were noted."""
        texts = [path.read_text() for path in sorted(self.shared.glob(f"runs/{pattern}/spool.jsonl"))]
        entries = [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [entry["step"] for entry in entries if entry["kind"] == "metrics"]

    def ranks(self, host: str) -> list[int]:
        """Process ids, on this machine, of the ranks of a run that a host holds now."""
        return [pid for pid in self.hosts.namespaces.processes(host) if "RayTrainWorker" in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


@contextmanager
def a_site(folder: Path, workers: int) -> Iterator[Site]:
    """Everything up, on hosts of one CPU each, and everything gone afterwards; skips where there can be no namespaces."""
    shared = folder / "shared"
    shared.mkdir()
    make_synthetic(shared / "data", per_class=6, size=32)
    experiment = shared / "small.yaml"
    experiment.write_text(EXPERIMENT.replace("name: TINY", "name: SYN").replace("size: 40", "size: 32"))
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{REPOSITORY}", str(folder / "clone")], check=True)
    login = {USERNAME_VARIABLE: "admin", PASSWORD_VARIABLE: secrets.token_hex(16)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in login.items():
            patch.setenv(name, value)
        with host_group(folder / "hosts", workers) as hosts, tracking_server(hosts.namespaces.gateway, login) as server:
            yield Site(hosts, shared, experiment, folder / "clone", server.uri)
