"""Thread of the driver that sends a run's spool to the tracking store, and the replay of spools that earlier commands left.

A server that is away delays what is tracked and loses nothing: the rest is sent when it is back, at the end, or by the next command. Each
(metric, step) is sent once: a resumed run reports an epoch again, and a lost answer may hide a success, so the sender asks for the run's
history whenever it cannot know. A lock beside the spool keeps the senders of two commands apart.

Where a store has lost the run, as when its database was deleted, the next command creates it again from the first line of the spool.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.errors import TrackingError
from pipeline.spool import (
    PARENT_TAG,
    EndStatus,
    Entry,
    Epoch,
    NewRun,
    OnEpoch,
    OnProblem,
    RunState,
    Sent,
    Spool,
    StoreIdentity,
)

POLL_SECONDS = 0.25
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
GATHER_SECONDS = 10.0
"""Epochs that are shorter travel together: what a request costs, here and on the server, hardly depends on how much it carries."""
MOST_EPOCHS = 40
"""In one request."""


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
        self._alone = False
        self._lock: IO[str]
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> Sender:
        """Begins to send; unless another command sends the spool, `replay_leftovers` passes it over from now on."""
        self._lock = self._spool.lock_file.open("w")
        self._alone = self._begin_where_it_was_left()
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
            with self._lock:
                self._work()
        except Exception as error:  # Handed to the caller of `drain`.
            self._defect = error

    def _work(self) -> None:
        """Reads and shows at once; sends from the moment on at which no other command does."""
        while True:
            draining = self._deadline is not None  # Read first: what was appended before `drain` must still be seen.
            self._read()
            self._alone = self._alone or self._begin_where_it_was_left()
            if draining:
                self._next_try = min(self._next_try, time.monotonic() + FIRST_PAUSE)
            if self._alone and not self._is_gathering():
                self._send()
            if draining and ((self._alone and not self._pending) or self._is_over()):
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _begin_where_it_was_left(self) -> bool:
        """Takes the lock, which ends with this process if not before; whether no other sender had it."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._problem = "another command is sending them"
            return False
        self._problem = None
        before = Sent.load(self._spool)
        if before and before.run_id == self._lost:  # Another command may have created it again meanwhile.
            before = Sent("", 0, self._sink.identity)
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
            Sent(self._run_id, self._sent_offset, self._sink.identity).save(self._spool)

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
        Sent(run_id, self._sent_offset, self._sink.identity).save(self._spool)
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
        spool, sent = Spool(path), Sent.load(Spool(path))
        if sent is None or not _is_left(spool, sent, sink) or spool.is_being_sent():
            continue
        problem = next(iter(problems.values()), None) or _replay(spool, sent, sink, timeout, replaced)
        if problem:
            problems[path.parent.name] = problem
    return problems


def _launches_first(path: Path) -> tuple[bool, Path]:
    """Sorting key: the runs below a launch name it by its id, which changes where it is created again."""
    return not path.parent.name.startswith("launch."), path


def _replay(spool: Spool, sent: Sent, sink: Sink, timeout: float, replaced: dict[str, str]) -> str | None:
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


def _is_left(spool: Spool, sent: Sent, sink: Sink) -> bool:
    """Whether something of a spool is not in the store, as far as the files can tell."""
    unsent = next(spool.read(sent.offset), None) is not None
    return unsent or (sent.store is not None and sink.identity.replaces(sent.store))
