"""Spool of a run: a file beside its checkpoints, which holds all that is to be tracked until `pipeline.tracking.sender` has sent it.

The first line tells how to create the run, for a store that lost it. The offset up to which lines were sent is in a file beside it.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
OnEpoch = Callable[[int, Mapping[str, float]], None]
OnProblem = Callable[[str], None]
RunState = Literal["active", "deleted", "lost"]
PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class StoreIdentity:
    """Identity of one experiment in one database; another database at the same address has another creation time."""

    address: str
    experiment: str
    created_ms: int

    def replaces(self, other: Self) -> bool:
        """Whether this one is at the other's address, whose runs are therefore lost."""
        return (self.address, self.experiment) == (other.address, other.experiment) and self != other


@dataclass(frozen=True)
class DatasetInput:
    """Data set of a run."""

    name: str
    digest: str
    split: str
    """One split, or several with commas between."""
    counts: Mapping[str, int]


@dataclass(frozen=True)
class NewRun:
    """Values with which a run is created."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[DatasetInput] = ()
    time_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        values = dict(value)
        # Earlier versions noted one data set, or none.
        earlier = [one for one in [values.pop("dataset", None)] if one]
        return cls(**{**values, "datasets": [DatasetInput(**one) for one in values.get("datasets", earlier)]})


@dataclass(frozen=True)
class Epoch:
    """Numbers of one epoch."""

    step: int
    metrics: Mapping[str, float]
    timestamp_ms: int


@dataclass(frozen=True)
class Entry:
    """One line of a spool."""

    kind: Literal["run", "metrics", "tags", "artifacts", "model", "end"]
    content: Mapping[str, Any]
    end_offset: int


class Spool:
    """An append-only file of JSON lines, made at the first line and safe against a writer that is killed in mid-line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lock_file(self) -> Path:
        return self.path.with_suffix(".lock")

    def append_run(self, new: NewRun) -> None:
        self._append({"kind": "run", "run": asdict(new)})

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the numbers of an epoch. Names with a slash are metrics to be tracked, others are for the progress line."""
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}
        self._append({"kind": "metrics", "step": step, "time_ms": int(time.time() * 1000), "metrics": numbers})

    def append_artifacts(self, folder: Path) -> None:
        """Adds a folder of artifacts; it must be in this one's folder and stay until it is sent."""
        self._append({"kind": "artifacts", "folder": self._relative(folder)})

    def append_model(self, file: Path, gamma: float, example: Path) -> None:
        """Adds an exported model, its γ and an example picture; the files must be in this one's folder and stay until they are sent."""
        paths = {"file": self._relative(file), "example": self._relative(example)}
        self._append({"kind": "model", "gamma": gamma, **paths})

    @property
    def run_id(self) -> str:
        """Id of the run; empty as long as it is not created."""
        sent = Sent.load(self)
        return sent.run_id if sent else ""

    def new_run(self) -> NewRun | None:
        """Values with which the run is created; None where no line holds them."""
        found = (entry.content["run"] for entry in self.read() if entry.kind == "run")
        return next(map(NewRun.from_json, found), None)

    def assign(self, run_id: str, store: StoreIdentity) -> None:
        """Notes the id of the run in a store, empty for a run that its sender creates; lines that went to another run are sent again."""
        sent = Sent.load(self)
        if sent is None or sent.run_id != run_id or sent.store != store:
            offset = sent.offset if sent and sent.run_id == run_id else 0
            Sent(run_id, offset, store).save(self)

    def is_being_sent(self) -> bool:
        """Whether a sender of this command or another one is working on it."""
        with self.lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def is_done(self) -> bool:
        """Whether all of it was sent, the run's end too."""
        entries, sent = list(self.read()), Sent.load(self)
        return bool(entries and sent and entries[-1].kind == "end" and entries[-1].end_offset <= sent.offset)

    def inside(self, path: str) -> Path:
        """A file or folder that an entry names; a `UserError` for one outside the run's folder, since a forged line may name any file."""
        found = (self.path.parent / path).resolve()
        if not found.is_relative_to(self.path.parent.resolve()):
            message = f"a line that is to be tracked names a file outside of its run: {found}"
            hint = "remove the spool: what it holds of that run is lost, no other run is"
            raise UserError(message, str(self.path), hint)
        return found

    def append_end(self, status: EndStatus, stop_reason: str, tags: Mapping[str, str] | None = None) -> None:
        """Adds the end of the run with its tags; no line comes after it, unless the run is resumed."""
        end = {"status": status, "stop_reason": stop_reason, "tags": dict(tags or {})}
        self._append({"kind": "end", **end, "time_ms": int(time.time() * 1000)})

    def read(self, offset: int = 0) -> Iterator[Entry]:
        """Whole lines from an offset on; one that was cut short by a killed writer is passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                yield Entry(value["kind"], value, offset)

    def worker_seconds(self) -> float:
        """Training time of every epoch noted times its workers, also of epochs that were trained again after a crash."""
        metrics = (entry.content["metrics"] for entry in self.read() if entry.kind == "metrics")
        return sum(numbers.get("perf/epoch_s", 0.0) * numbers.get("perf/world_size", 1.0) for numbers in metrics)

    def epochs(self) -> dict[int, dict[str, float]]:
        """Numbers of every epoch noted; of one that was trained again, the later ones."""
        noted = (entry.content for entry in self.read() if entry.kind == "metrics")
        return {int(content["step"]): dict(content["metrics"]) for content in noted}

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _relative(self, path: Path) -> str:
        """Path from this one's folder, with which it may be moved."""
        return os.path.relpath(path.resolve(), self.path.parent.resolve())

    def _append(self, value: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            cut_short = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write((b"\n" if cut_short else b"") + json.dumps(value).encode() + b"\n")
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Sent:
    """Offset that the sender of a spool has reached, and the run that it sent to."""

    run_id: str
    offset: int
    store: StoreIdentity | None = None
    """Store that it was sent to; None in files of earlier versions."""

    @staticmethod
    def file(spool: Spool) -> Path:
        return spool.path.with_suffix(".sent.json")

    @classmethod
    def load(cls, spool: Spool) -> Self | None:
        try:
            value = json.loads(cls.file(spool).read_text())
        except FileNotFoundError:
            return None
        store = value.get("store")
        return cls(value["run_id"], value["offset"], StoreIdentity(**store) if store else None)

    def save(self, spool: Spool) -> None:
        with replacing(self.file(spool)) as file:
            file.write(json.dumps(asdict(self)).encode())
