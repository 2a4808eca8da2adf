"""Spool of a run: small files beside its checkpoints, which hold all that is to be tracked until `pipeline.tracking.sender` has sent it.

The first tells how to create the run, for a store that lost it. What was sent is noted in a file beside them.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from mgmrn.errors import UserError
from pipeline.storage import StoragePath

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
OnEpoch = Callable[[int, Mapping[str, float]], None]
OnProblem = Callable[[str], None]
RunState = Literal["active", "deleted", "lost"]
PARENT_TAG = "mlflow.parentRunId"
SENT = "sent.json"
"""File of a run's folder that tells what was sent, and to which run."""
DIGITS = 8
"""Digits of an entry's number in the name of its file."""


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
        return cls(**{**value, "datasets": [DatasetInput(**one) for one in value["datasets"]]})


@dataclass(frozen=True)
class Epoch:
    """Numbers of one epoch."""

    step: int
    metrics: Mapping[str, float]
    timestamp_ms: int


@dataclass(frozen=True, order=True)
class Entry:
    """One file of a spool; the order is that in which they were written, of those of two writers at once an arbitrary one."""

    number: int
    writer: str
    """Process that wrote it."""
    kind: Literal["run", "metrics", "note", "artifacts", "model", "end"] = field(compare=False)
    content: Mapping[str, Any] = field(compare=False)


_WRITER = secrets.token_hex(4)
_writing = threading.Lock()
"""Held while this process adds an entry, whose number is above all others."""


class Spool:
    """Entries of a run, in the folder `spool` of its folder, one file each; only new ones are read when they are read again."""

    def __init__(self, folder: StoragePath) -> None:
        self.folder = folder
        """The run's folder."""
        self._known: dict[str, Entry | None] = {}
        self._entries: list[Entry] = []
        self._reading = threading.Lock()

    def append_run(self, new: NewRun) -> None:
        self._append({"kind": "run", "run": asdict(new)})

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the numbers of an epoch. Names with a slash are metrics to be tracked, others are for the progress line."""
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}
        self._append({"kind": "metrics", "step": step, "time_ms": int(time.time() * 1000), "metrics": numbers})

    def append_note(self, text: str) -> None:
        """Adds a sentence for the person at the driver."""
        self._append({"kind": "note", "text": text})

    def append_artifacts(self, folder: StoragePath) -> None:
        """Adds a folder of artifacts; it must be in the run's folder and stay until it is sent."""
        self._append({"kind": "artifacts", "folder": self._relative(folder)})

    def append_model(self, file: StoragePath, gamma: float, example: StoragePath) -> None:
        """Adds an exported model, its γ and an example picture; the files must be in the run's folder and stay until they are sent."""
        paths = {"file": self._relative(file), "example": self._relative(example)}
        self._append({"kind": "model", "gamma": gamma, **paths})

    @property
    def run_id(self) -> str:
        """Id of the run; empty as long as it is not created."""
        sent = Sent.load(self)
        return sent.run_id if sent else ""

    def new_run(self) -> NewRun | None:
        """Values with which the run is created; None where no entry holds them."""
        found = (entry.content["run"] for entry in self.read() if entry.kind == "run")
        return next(map(NewRun.from_json, found), None)

    def assign(self, run_id: str, store: StoreIdentity) -> None:
        """Notes the id of the run in a store, empty for a run that its sender creates; what went to another run is sent again."""
        sent = Sent.load(self)
        if sent is None or sent.is_done or (sent.run_id, sent.store) != (run_id, store):
            Sent(run_id, sent.last if sent and sent.run_id == run_id else {}, store).save(self)

    def is_done(self) -> bool:
        """Whether all of it was sent, the run's end too."""
        sent = Sent.load(self)
        return sent is not None and sent.is_done and all(map(sent.has, self.read()))

    def inside(self, path: str) -> StoragePath:
        """A file or folder that an entry names; a `UserError` for one outside the run's folder, since a forged entry may name any file."""
        root = os.path.realpath(self.folder.address)
        found = os.path.realpath(os.path.join(root, path))
        if not found.startswith(f"{root}/"):
            message = f"an entry that is to be tracked names a file outside of its run: {found}"
            hint = "remove the spool: what it holds of that run is lost, no other run is"
            raise UserError(message, str(self.folder), hint)
        return self.folder / path

    def append_end(self, status: EndStatus, stop_reason: str, tags: Mapping[str, str] | None = None) -> None:
        """Adds the end of the run with its tags; no entry comes after it, unless the run is resumed."""
        end = {"status": status, "stop_reason": stop_reason, "tags": dict(tags or {})}
        self._append({"kind": "end", **end, "time_ms": int(time.time() * 1000)})

    def read(self) -> list[Entry]:
        """All entries in their order."""
        with self._reading:
            if new := [name for name in self._files.names() if name not in self._known]:
                # A list may lack a file that is added meanwhile; the next one has all that are older than those of this one.
                for name in self._files.names():
                    if name not in self._known and name[:DIGITS] <= max(new)[:DIGITS]:
                        self._known[name] = _entry(name, (self._files / name).read())
                self._entries = sorted(entry for entry in self._known.values() if entry is not None)
            return self._entries

    def worker_seconds(self) -> float:
        """Training time of every epoch noted times its workers, also of epochs that were trained again after a crash."""
        metrics = (entry.content["metrics"] for entry in self.read() if entry.kind == "metrics")
        return sum(numbers.get("perf/epoch_s", 0.0) * numbers.get("perf/world_size", 1.0) for numbers in metrics)

    def epochs(self) -> dict[int, dict[str, float]]:
        """Numbers of every epoch noted; of one that was trained again, the later ones."""
        noted = (entry.content for entry in self.read() if entry.kind == "metrics")
        return {int(content["step"]): dict(content["metrics"]) for content in noted}

    @property
    def _files(self) -> StoragePath:
        return self.folder / "spool"

    def _relative(self, path: StoragePath) -> str:
        """Path from the run's folder, with which it may be moved."""
        return path.address.removeprefix(f"{self.folder.address}/")

    def _append(self, value: Mapping[str, Any]) -> None:
        with _writing:
            number = 1 + max((int(name[:DIGITS]) for name in self._files.names() if name[:DIGITS].isdigit()), default=0)
            # The process id tells forks apart.
            (self._files / f"{number:0{DIGITS}d}-{_WRITER}{os.getpid()}").write(json.dumps(value).encode())


def _entry(name: str, content: bytes | None) -> Entry | None:
    """Entry in a file; None for one that holds none."""
    with suppress(ValueError, LookupError, TypeError):
        number, writer = name.split("-")
        value = json.loads(content or b"")
        return Entry(int(number), writer, value["kind"], value)
    return None


@dataclass(frozen=True)
class Sent:
    """What the sender of a spool has sent, and the run that it sent to."""

    run_id: str
    last: Mapping[str, int]
    """Number of the last entry that was sent, by writer."""
    store: StoreIdentity
    is_done: bool = False
    """Whether nothing was left after an end."""

    def has(self, entry: Entry) -> bool:
        """Whether an entry was sent, or is not to be."""
        return entry.kind == "note" or entry.number <= self.last.get(entry.writer, 0)

    @classmethod
    def load(cls, spool: Spool) -> Self | None:
        content = (spool.folder / SENT).read()
        if content is None:
            return None
        value = json.loads(content)
        return cls(**value | {"store": StoreIdentity(**value["store"])})

    def save(self, spool: Spool) -> None:
        (spool.folder / SENT).write(json.dumps(asdict(self)).encode())
