"""Jobs on a cluster that asks for a token: sent once, followed, stopped; a checkout of this code's own is what is sent."""

import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.hosts.group import Head, write_token
from tests.ray.command import REPOSITORY, Answer, Place, a_place, wait_until
from tests.ray.small import EXPERIMENT, long_epochs
from tests.tiny import write_benchmark

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Site:
    """A cluster of one host, a checkout to send from, and a folder that both see."""

    place: Place
    shared: Path

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.shared / 'mlflow.db'}"

    @property
    def wheres(self) -> tuple[str, ...]:
        """Places of data and results, as arguments of `train`."""
        folders = ("--data-root", str(self.shared / "data"), "--storage", str(self.shared / "runs"))
        return (*folders, "--tracking-uri", self.tracking_uri)

    def submit(self, *arguments: str, wait: bool = True) -> Answer:
        return self.place.run("submit", "--json", *([] if wait else ["--no-wait"]), "train", "small.yaml", *arguments)

    def runs(self) -> list[Run]:
        """Tracked runs without their parents, oldest first."""
        client = MlflowClient(self.tracking_uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(experiments, order_by=["attributes.start_time ASC"])
        return [run for run in found if "mlflow.parentRunId" in run.data.tags]


def git(checkout: Path, *arguments: str) -> str:
    words = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def make_checkout(folder: Path) -> Path:
    """The code as it stands, committed, with the small experiment among it."""
    for name in git(REPOSITORY, "ls-files", "-co", "--exclude-standard").splitlines():
        if not name.startswith("tests/") and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    (folder / "small.yaml").write_text(EXPERIMENT)
    git(folder, "init", "-q")
    # Output files of a test's commands.
    (folder / ".git" / "info" / "exclude").write_text("tmp*\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[Site]:
    shared = tmp_path_factory.mktemp("shared")
    write_benchmark(shared / "data")
    shutil.copyfile(tables, shared / "mlflow.db")
    # Ray would turn 127.0.0.1 into an address that others can reach.
    address = f"127.{2 + secrets.randbelow(250)}.{secrets.randbelow(250)}.2"
    with ExitStack() as listeners:
        sockets = [listeners.enter_context(socket.create_server((address, 0))) for _ in range(5)]
        gcs, dashboard, client, agent, metrics = (one.getsockname()[1] for one in sockets)
    head = Head(address, write_token(shared / "token"), gcs, dashboard)
    with a_place(tmp_path_factory.mktemp("place") / "checkout") as place:
        make_checkout(place.folder)
        # The job must run the code that it was sent with.
        place.environment.pop("PYTHONPATH")
        place.environment |= {"HOME": str(shared)}
        ports = {"ray_client_server_port": client, "dashboard_agent_listen_port": agent, "metrics_export_port": metrics}
        options = {name: str(port) for name, port in ports.items()}
        ray = subprocess.Popen(
            head.start_command(cpus=2, temp_dir=str(place.ray_folder), **options),
            env=head.host_environment(place.environment),
            cwd=shared,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: bool(head.alive()), "Ray is up", seconds=240)
        place.environment |= head.client_environment
        yield Site(place, shared)
        place.kill_all()
        ray.wait()


def test_a_job_is_followed_to_its_end_and_sent_once(site: Site) -> None:
    (site.place.folder / "new.py").write_text("# not committed\n")
    command = ("--split", "tune", *site.wheres)
    first = site.submit(*command)
    assert first.code == 0, first.err
    answer = first.json
    submission = answer["submission_id"]
    assert re.fullmatch(r"mgmrn-train-small-[0-9a-f]{8}", submission)
    assert answer | {"action": "send", "status": "SUCCEEDED", "exit_code": 0, "verb": "train"} == answer
    assert "warning: 1 file differs from commit" in first.err, first.err
    assert first.err.count("Running entrypoint") == 1 and "epoch 2/2" in first.err, first.err

    (run,) = site.runs()
    assert (run.info.status, run.data.tags["mgmrn.ray_submission_id"]) == ("FINISHED", submission)
    assert run.data.tags["mgmrn.code_sha"] == git(site.place.folder, "rev-parse", "HEAD").strip()
    assert run.data.tags["mgmrn.code_dirty"] == "true"

    second = site.submit(*command)
    assert (second.code, second.json["action"], second.json["submission_id"]) == (0, "done", submission)
    assert len(site.runs()) == 1


def test_a_job_that_fails_answers_with_the_drivers_code_and_may_be_sent_again(site: Site) -> None:
    nowhere = ("--split", "tune", *site.wheres, "--data-root", str(site.shared / "nowhere"))
    first = site.submit(*nowhere)
    assert (first.code, first.json["status"], first.json["exit_code"]) == (2, "FAILED", 2)
    assert "nowhere" in first.err and "Traceback" not in first.err
    second = site.submit(*nowhere, wait=False)
    assert (second.code, second.json["submission_id"]) == (0, f"{first.json['submission_id']}-2")


@pytest.mark.long
def test_a_job_that_is_on_is_joined_and_stopped(site: Site) -> None:
    known = {run.info.run_id for run in site.runs()}
    endless = ("--split", "tune", *long_epochs(5000), *site.wheres)
    following = site.place.start("submit", "train", "small.yaml", *endless)
    wait_until(lambda: len(site.runs()) > len(known), "the run was created", running=following)
    following.process.send_signal(signal.SIGINT)
    left = following.answer()
    (submission,) = {run.data.tags["mgmrn.ray_submission_id"] for run in site.runs() if run.info.run_id not in known}
    assert left.code == 130 and f"{submission} goes on" in left.err

    joined = site.submit(*endless, wait=False)
    assert (joined.json["action"], joined.json["submission_id"]) == ("attach", submission)
    shown = site.place.run("status", submission, "--tracking-uri", site.tracking_uri, "--json").json["jobs"]
    launch = next(run.data.tags["mlflow.parentRunId"] for run in site.runs() if run.info.run_id not in known)
    assert [(one["status"], one["verb"], one["run_id"]) for one in shown] == [("RUNNING", "train", launch)]
    assert "Running entrypoint" in site.place.run("logs", submission).out

    stopped = site.place.run("stop", submission, "--json")
    assert (stopped.code, stopped.json["status"]) == (0, "STOPPED")
    assert [run.info.status for run in site.runs() if run.info.run_id not in known] == ["KILLED"]


def test_without_the_token_nothing_is_sent(site: Site) -> None:
    right = dict(site.place.environment)
    for changed, sentence in [
        ({}, "asks for a token, and none was sent"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "the token is not this cluster's"),
    ]:
        for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            site.place.environment.pop(name, None)
        site.place.environment |= changed
        refused = site.submit("--split", "final", *site.wheres)
        assert refused.code == 2 and sentence in refused.json["error"] and "RAY_AUTH_TOKEN" in refused.json["hint"]
        assert "Traceback" not in refused.err
    site.place.environment |= right
    site.place.environment.pop("RAY_AUTH_TOKEN")
    jobs = site.place.run("status", "--json").json["jobs"]
    assert jobs and not [job for job in jobs if "--split final" in job["entrypoint"]]
