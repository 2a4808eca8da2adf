"""The command line in a process of its own, with Ray's and our files in a folder of the test, and nothing left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.spool import Spool
from pipeline.storage import StoragePath

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "MGMRN_TEST_PLACE"
"""Environment variable by which all descendants of a command are known, also those that left its process group."""


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """The object on standard output, which must hold nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class Running:
    """A command that was started."""

    def __init__(self, place: Place, arguments: tuple[str, ...]) -> None:
        self._out, self._err = (tempfile.NamedTemporaryFile(dir=place.folder, delete=False) for _ in "oe")  # noqa: SIM115
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=place.folder,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def kill(self) -> None:
        """SIGKILL to the driver and what stayed in its process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def answer(self, timeout: float = 400) -> Answer:
        """Waits for the end."""
        code = self.process.wait(timeout)
        texts = [Path(file.name).read_text() for file in (self._out, self._err)]
        return Answer(code, *texts, time.monotonic() - self._started)

    def errors_so_far(self) -> str:
        """Standard error up to now."""
        return Path(self._err.name).read_text()


class Place:
    """A working folder for commands, with a Ray of its own.

    Args:
        folder: working folder; `.mgmrn` lands there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket: StoragePath | None = None
        """Storage of the runs, where it is not the folder's own."""
        self.mark = uuid.uuid4().hex
        # Not in `folder`: the path of a unix socket has at most 107 characters.
        self.ray_folder = Path(tempfile.mkdtemp(prefix="r"))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "MGMRN_"))}
        self.environment = inherited | {
            MARK: self.mark,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
            "RAY_TMPDIR": str(self.ray_folder),
            "OMP_NUM_THREADS": "1",
            # Epochs are shorter here than anywhere else.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        }

    @property
    def storage(self) -> StoragePath:
        return self.bucket or StoragePath.parse(self.folder / ".mgmrn" / "runs")

    @property
    def tracking_uri(self) -> str:
        """The default store of the folder."""
        return f"sqlite:///{self.folder / '.mgmrn' / 'mlflow.db'}"

    @property
    def ray_sessions(self) -> list[Path]:
        """Instances of Ray that were ever started here."""
        # `session_latest` is a link.
        return [path for path in self.ray_folder.rglob("session_*") if not path.is_symlink()]

    def start(self, *arguments: str) -> Running:
        """Starts `python -m pipeline …`."""
        return Running(self, arguments)

    def run(self, *arguments: str, timeout: float = 400) -> Answer:
        """Runs `python -m pipeline …` to its end."""
        return self.start(*arguments).answer(timeout)

    def processes(self) -> list[psutil.Process]:
        """All that lives of what was started here."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def training_workers(self) -> list[psutil.Process]:
        """Ranks of a run that is on: processes of Ray Train's worker actor, or of trials where these train themselves."""
        trials, ranks = [], []
        for process in self.processes():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                ranks += [process] if "RayTrainWorker" in title else []
                trials += [process] if "OpenTrial" in title or "SealedTrial" in title else []
        return ranks or trials

    def epochs_noted(self) -> list[int]:
        """Steps in the spools, in the order in which they were noted."""
        entries = [entry for name in self.storage.names() for entry in Spool(self.storage / name).read()]
        return [entry.content["step"] for entry in entries if entry.kind == "metrics"]

    def kill_all(self) -> None:
        """Ends every process that was started here, by its id, until there is none."""
        deadline = time.monotonic() + 30
        while (alive := self.processes()) and time.monotonic() < deadline:
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=2)


@contextmanager
def a_place(folder: Path) -> Iterator[Place]:
    """A place, from which everything is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder)
    try:
        yield place
    finally:
        place.kill_all()
        shutil.rmtree(place.ray_folder, ignore_errors=True)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120, running: Running | None = None) -> None:
    """Waits until something is so, or fails saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if running is not None and running.process.poll() is not None:
            raise AssertionError(f"the command ended before {what}:\n{running.errors_so_far()}")
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
