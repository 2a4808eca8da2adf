"""What is to be tracked, on disk first: a file that training appends to, and a thread that sends it to the server.

Training writes a line and goes on, whether the server answers or not. The driver's `Sender` reads the lines in order,
sends them, and notes beside the file how far it has come. A server that is away delays what is tracked and loses
nothing: the rest is sent when it is back, at the end, or at the next start. Each (metric, step) is sent once: a resumed
run reports an epoch again, and an answer that was lost on the way may hide a success, so the sender asks for the run's
history whenever it cannot know.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mgmrn.atomic_file import replacing
from pipeline.errors import TrackingError

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
OnEpoch = Callable[[int, Mapping[str, float]], None]

POLL_SECONDS = 0.25
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Sink(Protocol):
    """What a sender needs of a tracking store. Every method raises `TrackingError` where the store is away."""

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """The steps of a metric that the run has."""

    def log_metrics(self, run_id: str, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Adds one value to each of some metrics."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags; doing it again changes nothing."""

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Uploads a folder's content; doing it again changes nothing."""

    def finish(self, run_id: str, status: EndStatus, stop_reason: str) -> None:
        """Ends the run; doing it again changes nothing."""


@dataclass(frozen=True)
class Entry:
    """One line of a spool."""

    kind: Literal["metrics", "tags", "artifacts", "end"]
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

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds an epoch's numbers. Names with a slash are metrics to be tracked, others are for the progress line."""
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}
        self._append({"kind": "metrics", "step": step, "time_ms": int(time.time() * 1000), "metrics": numbers})

    def append_tags(self, tags: Mapping[str, str]) -> None:
        """Adds tags."""
        self._append({"kind": "tags", "tags": dict(tags)})

    def append_artifacts(self, folder: Path) -> None:
        """Adds a folder of files, which must stay until it is sent."""
        self._append({"kind": "artifacts", "folder": str(folder.resolve())})

    def append_end(self, status: EndStatus, stop_reason: str) -> None:
        """Adds the run's end; nothing comes after it, unless the run is resumed."""
        self._append({"kind": "end", "status": status, "stop_reason": stop_reason})

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

    @staticmethod
    def file(spool: Spool) -> Path:
        return spool.path.with_suffix(".sent.json")

    @classmethod
    def load(cls, spool: Spool) -> _Sent | None:
        try:
            return cls(**json.loads(cls.file(spool).read_text()))
        except FileNotFoundError:
            return None

    def save(self, spool: Spool) -> None:
        with replacing(self.file(spool)) as file:
            file.write(json.dumps({"run_id": self.run_id, "offset": self.offset}).encode())


class Sender:
    """Sends a spool to one run, in a thread of its own, from `start` to `drain`.

    Args:
        spool: what is to be sent; it may grow meanwhile.
        run_id: the run that it belongs to. Where it was sent to another run before, all of it is sent to this one.
        sink: the tracking store.
        on_epoch: told of every epoch that is appended after the start, at once, with step and numbers.
    """

    def __init__(self, spool: Spool, run_id: str, sink: Sink, on_epoch: OnEpoch = lambda step, metrics: None) -> None:
        self._spool = spool
        self._run_id = run_id
        self._sink = sink
        self._on_epoch = on_epoch
        before = _Sent.load(spool)
        start = before.offset if before and before.run_id == run_id else 0
        _Sent(run_id, start).save(spool)
        self._sent_offset = self._read_offset = start
        self._shown_offset = spool.size()
        self._pending: deque[Entry] = deque()
        self._steps: dict[str, set[int]] = {}
        self._pause = FIRST_PAUSE
        self._next_try = 0.0
        self._deadline: float | None = None
        self._wake = threading.Event()
        self._problem: str | None = None
        self._defect: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> Sender:
        """Begins to send."""
        self._thread.start()
        return self

    def drain(self, timeout: float) -> str | None:
        """Sends what is left, waiting at most `timeout` seconds, and ends the thread.

        Returns:
            None when everything was sent, else why not. What is left stays in the spool for the next start.
        """
        self._deadline = time.monotonic() + timeout
        self._wake.set()
        self._thread.join()
        if self._defect:
            raise self._defect
        left = sum(1 for _ in self._spool.read(self._sent_offset))
        return f"{left} entries could not be sent: {self._problem or 'no time left'}" if left else None

    def _run(self) -> None:
        try:
            while True:
                deadline = self._deadline  # Read first: what was appended before `drain` must still be seen.
                self._read()
                if deadline is not None:
                    self._next_try = min(self._next_try, time.monotonic() + FIRST_PAUSE)
                self._send(deadline)
                if deadline is not None and (not self._pending or time.monotonic() >= deadline):
                    return
                self._wake.wait(POLL_SECONDS)
        except Exception as error:  # Handed to the caller of `drain`.
            self._defect = error

    def _read(self) -> None:
        for entry in self._spool.read(self._read_offset):
            self._pending.append(entry)
            self._read_offset = entry.end_offset
            if entry.kind == "metrics" and entry.end_offset > self._shown_offset:
                self._on_epoch(entry.content["step"], entry.content["metrics"])

    def _send(self, deadline: float | None) -> None:
        while self._pending and time.monotonic() >= self._next_try:
            if deadline is not None and time.monotonic() >= deadline:
                return
            try:
                self._send_entry(self._pending[0])
            except TrackingError as error:
                self._problem = str(error)
                self._steps.clear()  # The server may have stored what it did not confirm.
                self._next_try = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return
            self._pause = FIRST_PAUSE
            self._sent_offset = self._pending.popleft().end_offset
            _Sent(self._run_id, self._sent_offset).save(self._spool)

    def _send_entry(self, entry: Entry) -> None:
        content = entry.content
        if entry.kind == "metrics":
            self._send_metrics(content["step"], content["metrics"], content["time_ms"])
        elif entry.kind == "tags":
            self._sink.set_tags(self._run_id, content["tags"])
        elif entry.kind == "artifacts":
            self._sink.log_artifacts(self._run_id, Path(content["folder"]))
        else:
            self._sink.finish(self._run_id, content["status"], content["stop_reason"])

    def _send_metrics(self, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        for key in metrics:
            if "/" in key and key not in self._steps:
                self._steps[key] = self._sink.logged_steps(self._run_id, key)
        new = {key: value for key, value in metrics.items() if "/" in key and step not in self._steps[key]}
        if new:
            self._sink.log_metrics(self._run_id, step, new, timestamp_ms)
        for key in new:
            self._steps[key].add(step)


def replay_leftovers(storage: Path, sink: Sink, timeout: float) -> list[str]:
    """Sends what earlier drivers left in the spools of a storage folder.

    Call it before this launch starts its own senders: two senders on one spool would race.

    Returns:
        What could not be sent, one sentence per spool.
    """
    deadline = time.monotonic() + timeout
    problems = []
    for path in sorted(storage.glob("*/spool.jsonl")):
        spool = Spool(path)
        sent = _Sent.load(spool)
        if sent is None or next(spool.read(sent.offset), None) is None:
            continue
        problem = Sender(spool, sent.run_id, sink).start().drain(max(deadline - time.monotonic(), 0.0))
        if problem:
            problems.append(f"{path}: {problem}")
    return problems
