"""What is to be tracked, on disk first: a file that training appends to, and a thread that sends it to the server.

Training writes a line and goes on, whether the server answers or not. The driver's `Sender` reads the lines in order,
sends them, and notes beside the file how far it has come. A server that is away delays what is tracked and loses
nothing: the rest is sent when it is back, at the end, or at the next start. Each (metric, step) is sent once: a resumed
run reports an epoch again, and an answer that was lost on the way may hide a success, so the sender asks for the run's
history whenever it cannot know. A lock beside the file keeps the senders of two commands on one storage apart.

The first line says how the run is created. Where a store has lost the run, as when its database was deleted, the next
command creates it again from that line and sends all others to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError
from pipeline.errors import TrackingError

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
OnEpoch = Callable[[int, Mapping[str, float]], None]
OnProblem = Callable[[str], None]
RunState = Literal["active", "deleted", "lost"]
PARENT_TAG = "mlflow.parentRunId"

POLL_SECONDS = 0.25
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
GATHER_SECONDS = 10.0
"""Epochs that are shorter travel together: what a request costs, here and on the server, hardly depends on how much it carries."""
MOST_EPOCHS = 40
"""In one request."""


@dataclass(frozen=True)
class StoreIdentity:
    """Names one experiment in one database; another database at the same address has another creation time."""

    address: str
    experiment: str
    created_ms: int

    def replaces(self, other: StoreIdentity) -> bool:
        """Whether this one stands at the other's place, whose runs are therefore lost."""
        return (self.address, self.experiment) == (other.address, other.experiment) and self != other


@dataclass(frozen=True)
class DatasetInput:
    """The data that a run was made from."""

    name: str
    digest: str
    split: str
    counts: Mapping[str, int]
    """Images and classes."""
    standin: bool


@dataclass(frozen=True)
class NewRun:
    """All that a run is created with."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    dataset: DatasetInput | None = None
    time_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    """Its start."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NewRun:
        """Read what `dataclasses.asdict` made of one."""
        dataset = value["dataset"]
        return cls(**{**value, "dataset": DatasetInput(**dataset) if dataset else None})


class Sink(Protocol):
    """What a sender needs of a tracking store. Every method raises `TrackingError` where the store is away."""

    identity: StoreIdentity

    def create_run(self, new: NewRun) -> str:
        """Creates a run without params and data set; returns its id."""

    def describe_run(self, run_id: str, new: NewRun) -> None:
        """Logs params and data set; doing it again changes nothing."""

    def state_of(self, run_id: str) -> RunState:
        """Whether the store has the run, or its user has deleted it, or it does not know the id."""

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """The steps of a metric that the run has."""

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        """Adds one value to each of some metrics, for each of some epochs."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags; doing it again changes nothing."""

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Uploads a folder's content; doing it again changes nothing."""

    def log_model(self, run_id: str, file: Path, gamma: float, example: Path) -> None:
        """Logs an exported model; doing it again changes nothing."""

    def finish(self, run_id: str, status: EndStatus, stop_reason: str, time_ms: int | None = None) -> None:
        """Ends the run, now or at a time; doing it again changes nothing."""


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers."""

    step: int
    metrics: Mapping[str, float]
    timestamp_ms: int


@dataclass(frozen=True)
class Entry:
    """One line of a spool."""

    kind: Literal["run", "metrics", "tags", "artifacts", "model", "end"]
    content: Mapping[str, Any]
    end_offset: int
    """Position in the file after the line."""


class Spool:
    """An append-only file of JSON lines, safe against a writer that is killed in mid-line.

    Args:
        path: the file; it and its folder are made at the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lock_file(self) -> Path:
        """Locked by whoever sends the spool."""
        return self.path.with_suffix(".lock")

    def append_run(self, new: NewRun) -> None:
        """Adds how the run is created."""
        self._append({"kind": "run", "run": asdict(new)})

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds an epoch's numbers. Names with a slash are metrics to be tracked, others are for the progress line."""
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}
        self._append({"kind": "metrics", "step": step, "time_ms": int(time.time() * 1000), "metrics": numbers})

    def append_tags(self, tags: Mapping[str, str]) -> None:
        """Adds tags."""
        self._append({"kind": "tags", "tags": dict(tags)})

    def append_artifacts(self, folder: Path) -> None:
        """Adds a folder of files; it must stand in this one's folder and stay until it is sent."""
        self._append({"kind": "artifacts", "folder": str(folder.resolve())})

    def append_model(self, file: Path, gamma: float, example: Path) -> None:
        """Adds an exported model; its files must stand in this one's folder and stay until they are sent.

        Args:
            file: what `mgmrn.checkpoint.export_model` wrote.
            gamma: that it was evaluated at.
            example: a picture.
        """
        paths = {"file": str(file.resolve()), "example": str(example.resolve())}
        self._append({"kind": "model", "gamma": gamma, **paths})

    @property
    def run_id(self) -> str:
        """Id of the run that it belongs to; empty as long as that is not created."""
        sent = _Sent.load(self)
        return sent.run_id if sent else ""

    def new_run(self) -> NewRun | None:
        """How its run is created; None where it does not say so."""
        found = (entry.content["run"] for entry in self.read() if entry.kind == "run")
        return next(map(NewRun.from_json, found), None)

    def assign(self, run_id: str, store: StoreIdentity) -> None:
        """Notes the run that it belongs to; what was sent to another run is sent again, to this one.

        Args:
            run_id: empty for a run that its sender creates.
            store: where the run is.
        """
        sent = _Sent.load(self)
        if sent is None or sent.run_id != run_id or sent.store != store:
            offset = sent.offset if sent and sent.run_id == run_id else 0
            _Sent(run_id, offset, store).save(self)

    def is_being_sent(self) -> bool:
        """Whether a sender of this command or another one is at it."""
        with self.lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def is_done(self) -> bool:
        """Whether all of it was sent, the run's end too."""
        entries, sent = list(self.read()), _Sent.load(self)
        return bool(entries and sent and entries[-1].kind == "end" and entries[-1].end_offset <= sent.offset)

    def inside(self, path: str) -> Path:
        """A file or folder that an entry names.

        Raises:
            UserError: when it stands outside of the spool's folder: a line that nobody here wrote may name any file.
        """
        found = Path(path).resolve()
        if not found.is_relative_to(self.path.parent.resolve()):
            hint = "remove the spool: what it holds of that run is lost, no other run is"
            raise UserError(
                f"a line that is to be tracked names a file outside of its run: {found}", str(self.path), hint
            )
        return found

    def append_end(self, status: EndStatus, stop_reason: str) -> None:
        """Adds the run's end; nothing comes after it, unless the run is resumed."""
        self._append({"kind": "end", "status": status, "stop_reason": stop_reason, "time_ms": int(time.time() * 1000)})

    def read(self, offset: int = 0) -> Iterator[Entry]:
        """The whole lines from an offset on; a line that was cut short by a killed writer is passed over."""
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
        """Training time of every epoch noted, over its workers; of those that were trained again after a crash too."""
        metrics = (entry.content["metrics"] for entry in self.read() if entry.kind == "metrics")
        return sum(numbers.get("perf/epoch_s", 0.0) * numbers.get("perf/world_size", 1.0) for numbers in metrics)

    def epochs(self) -> dict[int, dict[str, float]]:
        """The numbers of every epoch noted; of one that was trained again, the later ones."""
        return {
            int(entry.content["step"]): dict(entry.content["metrics"])
            for entry in self.read()
            if entry.kind == "metrics"
        }

    def size(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def _append(self, value: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if cut_short else b"") + json.dumps(value).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Sent:
    """How far a spool was sent, and to which run."""

    run_id: str
    offset: int
    store: StoreIdentity | None = None
    """None in files of earlier versions."""

    @staticmethod
    def file(spool: Spool) -> Path:
        return spool.path.with_suffix(".sent.json")

    @classmethod
    def load(cls, spool: Spool) -> _Sent | None:
        try:
            value = json.loads(cls.file(spool).read_text())
        except FileNotFoundError:
            return None
        store = value.get("store")
        return cls(value["run_id"], value["offset"], StoreIdentity(**store) if store else None)

    def save(self, spool: Spool) -> None:
        with replacing(self.file(spool)) as file:
            file.write(json.dumps(asdict(self)).encode())


class Sender:
    """Sends a spool to one run, in a thread of its own, from `start` to `drain`.

    Args:
        spool: what is to be sent; it may grow meanwhile.
        run_id: the run that it belongs to; empty: it is created from the spool's first line; None: the one that was noted beside the
            spool. Where the spool was sent to another run before, all of it is sent to this one.
        sink: the tracking store.
        on_epoch: told of every epoch that is appended after the start, at once, with step and numbers.
        on_problem: told at once why an attempt failed, the first time after the start and after each success.
        lost: id of the run that it belonged to and that the store has lost, so that it is created again.
        parents: ids of launches that were created again, by the ids that they had.
    """

    def __init__(
        self,
        spool: Spool,
        run_id: str | None,
        sink: Sink,
        on_epoch: OnEpoch = lambda step, metrics: None,
        on_problem: OnProblem = lambda problem: None,
        lost: str | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        self._spool = spool
        self._run_id = run_id or ""
        self._lost = lost
        self._sink = sink
        self._on_epoch = on_epoch
        self._on_problem = on_problem
        self._parents = parents or {}
        if run_id is not None:
            spool.assign(run_id, sink.identity)
        self._sent_offset = self._read_offset = 0
        self._shown_offset = spool.size()
        self._pending: deque[Entry] = deque()
        self._steps: dict[str, set[int]] = {}
        self._pause = FIRST_PAUSE
        self._failing = False
        self._next_try = 0.0
        self._next_epochs = 0.0
        self._patience = 0.0
        self._deadline: float | None = None
        self._wake = threading.Event()
        self._problem: str | None = None
        self._defect: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> Sender:
        """Begins to send."""
        self._thread.start()
        return self

    @property
    def problem(self) -> str | None:
        """Why the latest attempt failed, or an earlier one; None where none did."""
        return self._problem

    def drain(self, timeout: float) -> str | None:
        """Sends what is left, and ends the thread when for `timeout` seconds nothing could be sent.

        Returns:
            None when everything was sent, else why not. What is left stays in the spool for the next start.
        """
        self._patience, self._deadline = timeout, time.monotonic() + timeout
        self._wake.set()
        self._thread.join()
        if self._defect:
            raise self._defect
        left = sum(1 for _ in self._spool.read(self._sent_offset))
        return self._problem or "no time was left" if left else None

    def _run(self) -> None:
        try:
            with self._spool.lock_file.open("w") as lock:
                self._work(lock)
        except Exception as error:  # Handed to the caller of `drain`.
            self._defect = error

    def _work(self, lock: IO[str]) -> None:
        """Reads and shows at once; sends from the moment on at which no other command does."""
        alone = False
        while True:
            draining = self._deadline is not None  # Read first: what was appended before `drain` must still be seen.
            self._read()
            alone = alone or self._begin_where_it_was_left(lock)
            if draining:
                self._next_try = min(self._next_try, time.monotonic() + FIRST_PAUSE)
            if alone and not self._is_gathering():
                self._send()
            if draining and ((alone and not self._pending) or self._is_over()):
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _begin_where_it_was_left(self, lock: IO[str]) -> bool:
        """Takes the lock, which ends with this process if not before; whether nobody else had it."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._problem = "another command is sending them"
            return False
        before = _Sent.load(self._spool)
        if before and before.run_id == self._lost:  # Another command may have created it again meanwhile.
            before = _Sent("", 0, self._sink.identity)
            before.save(self._spool)
        self._sent_offset = before.offset if before else 0
        self._run_id = before.run_id if before else self._run_id
        self._pending = deque(entry for entry in self._pending if entry.end_offset > self._sent_offset)
        return True

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _read(self) -> None:
        for entry in self._spool.read(self._read_offset):
            self._pending.append(entry)
            self._read_offset = entry.end_offset
            if entry.kind == "metrics" and entry.end_offset > self._shown_offset:
                self._on_epoch(entry.content["step"], entry.content["metrics"])

    def _is_gathering(self) -> bool:
        """Whether all that is there may wait for the epochs that come."""
        early = self._deadline is None and time.monotonic() < self._next_epochs
        return early and len(self._next_group()) == len(self._pending)

    def _next_group(self) -> list[Entry]:
        """The epochs that are next, or else what is next."""
        epochs = takewhile(lambda entry: entry.kind == "metrics", islice(self._pending, MOST_EPOCHS))
        return list(epochs) or list(islice(self._pending, 1))

    def _send(self) -> None:
        while self._pending and time.monotonic() >= self._next_try and not self._is_over():
            group = self._next_group()
            try:
                self._send_group(group)
            except TrackingError as error:
                self._problem = error.message + (f" ({error.hint})" if error.hint else "")
                if not self._failing:
                    self._on_problem(self._problem)
                self._failing = True
                self._steps.clear()  # The server may have stored what it did not confirm.
                self._next_try = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return
            self._pause, self._failing = FIRST_PAUSE, False
            if self._deadline is not None:
                self._deadline = time.monotonic() + self._patience
            for _ in group:
                self._sent_offset = self._pending.popleft().end_offset
            _Sent(self._run_id, self._sent_offset, self._sink.identity).save(self._spool)

    def _send_group(self, group: Sequence[Entry]) -> None:
        entry = group[0]
        content = entry.content
        if not self._run_id:
            self._run_id = self._created()
        if entry.kind == "run":
            self._sink.describe_run(self._run_id, NewRun.from_json(content["run"]))
        elif entry.kind == "metrics":
            self._send_epochs([one.content for one in group])
        elif entry.kind == "tags":
            self._sink.set_tags(self._run_id, content["tags"])
        elif entry.kind == "artifacts":
            self._sink.log_artifacts(self._run_id, self._spool.inside(content["folder"]))
        elif entry.kind == "model":
            file, example = self._spool.inside(content["file"]), self._spool.inside(content["example"])
            self._sink.log_model(self._run_id, file, content["gamma"], example)
        else:
            self._sink.finish(self._run_id, content["status"], content["stop_reason"], content.get("time_ms"))

    def _created(self) -> str:
        """Creates the run; its id is noted before anything else is sent."""
        new = self._spool.new_run()
        assert new is not None, "a spool without a run says how it is created"
        parent = new.tags.get(PARENT_TAG, "")
        run_id = self._sink.create_run(
            replace(new, tags={**new.tags, PARENT_TAG: self._parents.get(parent, parent)} if parent else new.tags)
        )
        _Sent(run_id, self._sent_offset, self._sink.identity).save(self._spool)
        return run_id

    def _send_epochs(self, contents: Sequence[Mapping[str, Any]]) -> None:
        epochs = [self._unsent(one["step"], one["metrics"], one["time_ms"]) for one in contents]
        if any(epoch.metrics for epoch in epochs):
            self._sink.log_epochs(self._run_id, epochs)
        self._next_epochs = time.monotonic() + GATHER_SECONDS

    def _unsent(self, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> Epoch:
        """What the run does not have of an epoch; from then on it counts as sent."""
        new = {}
        for key, value in metrics.items():
            if "/" not in key:
                continue
            if key not in self._steps:
                self._steps[key] = self._sink.logged_steps(self._run_id, key)
            if step not in self._steps[key]:
                self._steps[key].add(step)
                new[key] = value
        return Epoch(step, new, timestamp_ms)


def replay_leftovers(storage: Path, sink: Sink, timeout: float) -> dict[str, str]:
    """Sends what the spools of a storage folder still hold; those that a living driver sends are left out.

    Where the store has lost a run that it had, because its database was deleted, emptied or put back, the run is created again
    and all of its spool is sent. Runs that a user has deleted, and those of other stores, are left alone.

    Args:
        storage: folder of run folders.
        sink: the tracking store.
        timeout: seconds that a store which is away is waited for; what comes after the first failure is not tried.

    Returns:
        Why something could not be sent, by the name of the run folder.
    """
    problems: dict[str, str] = {}
    replaced: dict[str, str] = {}
    for path in sorted(storage.glob("*/spool.jsonl"), key=_launches_first):
        spool, sent = Spool(path), _Sent.load(Spool(path))
        if sent is None or not _is_left(spool, sent, sink) or spool.is_being_sent():
            continue
        problem = next(iter(problems.values()), None) or _replay(spool, sent, sink, timeout, replaced)
        if problem:
            problems[path.parent.name] = problem
    return problems


def _launches_first(path: Path) -> tuple[bool, Path]:
    """Sorting key: the runs below a launch name it by its id, which changes where it is created again."""
    return not path.parent.name.startswith("launch."), path


def _replay(spool: Spool, sent: _Sent, sink: Sink, timeout: float, replaced: dict[str, str]) -> str | None:
    """Sends one spool; returns why not all of it could be sent.

    Args:
        spool: the spool.
        sent: how far it was sent.
        sink: the tracking store.
        timeout: seconds that a store which is away is waited for.
        replaced: ids of runs that were created again, by the ids that they had; grows.
    """
    try:
        state = sink.state_of(sent.run_id) if sent.run_id else "lost"
    except TrackingError as error:
        return error.message
    elsewhere = sent.store is not None and sent.store != sink.identity and not sink.identity.replaces(sent.store)
    if state == "deleted" or (state == "lost" and (elsewhere or spool.new_run() is None)):
        return None
    lost = sent.run_id if state == "lost" else None
    problem = Sender(spool, None, sink, lost=lost, parents=replaced).start().drain(timeout)
    replaced[sent.run_id] = spool.run_id
    return problem


def _is_left(spool: Spool, sent: _Sent, sink: Sink) -> bool:
    """Whether something of a spool is not in the store, as far as the files can tell."""
    unsent = next(spool.read(sent.offset), None) is not None
    return unsent or (sent.store is not None and sink.identity.replaces(sent.store))
