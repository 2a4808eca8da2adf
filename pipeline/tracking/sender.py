"""Thread of the driver that sends a run's spool to the tracking store, and the replay of spools that earlier commands left.

An unreachable server delays tracking and loses nothing. Each (metric, step) is sent once: a resumed run reports an epoch again, and
a lost answer may hide a success, so the sender reads the run's history when in doubt. A claim keeps the senders of two commands apart.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any, Self

from pipeline.claims import TakenError, living_holder, release, take
from pipeline.driver import driver_tag, heartbeat
from pipeline.errors import TrackingError
from pipeline.spool import PARENT_TAG, Entry, Epoch, NewRun, OnEpoch, OnProblem, Sent, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.store import TrackingStore

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between attempts; the pause doubles from the first to the longest."""
GATHER_SECONDS = 10.0
"""Least seconds between two requests with epochs, since the cost of a request hardly depends on its size."""
MOST_EPOCHS = 40
READERS = 16
"""Spools that are looked at at once for what is left of them: each look at an object store takes tens of milliseconds."""

_sending: set[StoragePath] = set()
"""Claims of the spools that this process sends; a spool has one sender."""
_choosing = threading.Lock()


class Sender:
    """Sends a spool, which may grow meanwhile, to one run, in its own thread from `start` to `drain`.

    An empty `run_id` creates the run from the spool's first entry, None uses the id noted beside the spool; what was sent to another run
    is sent again. `on_epoch` and `on_note` are called at once for what is appended after the start, `on_problem` with the first failure after
    the start and after each success. `lost` is the id of a run to create again, `parents` holds new ids of such launches by former ones.
    """

    def __init__(
        self,
        spool: Spool,
        run_id: str | None,
        store: TrackingStore,
        on_epoch: OnEpoch = lambda step, metrics: None,
        on_note: Callable[[str], None] = lambda text: None,
        on_problem: OnProblem = lambda problem: None,
        lost: str | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        self._spool = spool
        self._claim = _claim(spool)
        self._lost = lost
        self._store = store
        self._on_epoch = on_epoch
        self._on_note = on_note
        self._on_problem = on_problem
        self._parents = parents or {}
        if run_id is not None:
            spool.assign(run_id, store.identity)
        self._sent = Sent.load(spool) or Sent(run_id or "", {}, store.identity)
        self._shown = set(spool.read())
        self._seen: set[Entry] = set()
        self._pending: deque[Entry] = deque()
        self._steps: dict[str, set[int]] = {}
        """Steps of the metrics that the run is known to have."""
        self._is_new = False
        """Whether this sender has created the run, and no request has failed since: it has the steps that were sent here alone."""
        self._pause = FIRST_PAUSE
        self._next_try = self._next_epochs = self._patience = 0.0
        self._deadline: float | None = None
        self._wake = threading.Event()
        self.problem: str | None = None
        """Reason of the latest failure; None without any."""
        self._defect: Exception | None = None
        self._alone = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> Self:
        """Start to send; unless another command sends the spool, `replay_leftovers` leaves it to this sender from now on."""
        self._alone = self._begin_where_it_was_left()
        self._thread.start()
        return self

    def drain(self, timeout: float) -> str | None:
        """Send the rest, until nothing could be sent for `timeout` seconds; returns the reason if part of the spool is left."""
        self._patience, self._deadline = timeout, time.monotonic() + timeout
        self._wake.set()
        self._thread.join()
        if self._defect:
            raise self._defect
        left = any(not self._sent.has(entry) for entry in self._spool.read())
        return self.problem or "no time was left" if left else None

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # Raised again by `drain`.
            self._defect = error
        finally:
            if self._alone:
                release(self._claim)
                _sending.discard(self._claim)

    def _work(self) -> None:
        """Read and show epochs at once; send as soon as no other command sends this spool."""
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
            self._wake.wait(self._spool.folder.poll_seconds)
            self._wake.clear()

    def _begin_where_it_was_left(self) -> bool:
        """Claim the spool, for as long as the process lives at most, and read how far it was sent; False if it is taken."""
        with _choosing:
            try:
                if self._claim in _sending:
                    raise TakenError(self._claim.name, driver_tag())
                take(self._claim)
            except TakenError:
                self.problem = "another command is sending them"
                return False
            _sending.add(self._claim)
        self.problem = None
        self._sent = Sent.load(self._spool) or self._sent
        if self._sent.run_id == self._lost:  # Another command may have created it again meanwhile.
            self._note(Sent("", {}, self._store.identity))
        self._pending = deque(entry for entry in self._pending if not self._sent.has(entry))
        return True

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _read(self) -> None:
        if len(entries := self._spool.read()) == len(self._seen):
            return
        for entry in entries:
            if entry in self._seen:
                continue
            self._seen.add(entry)
            if not self._sent.has(entry):
                self._pending.append(entry)
            if entry in self._shown:
                continue
            if entry.kind == "metrics":
                self._on_epoch(entry.content["step"], entry.content["metrics"])
            elif entry.kind == "note":
                self._on_note(entry.content["text"])

    def _is_gathering(self) -> bool:
        """Whether all pending entries are epochs that may wait for the next ones."""
        early = self._deadline is None and time.monotonic() < self._next_epochs
        return early and len(self._next_group()) == len(self._pending)

    def _next_group(self) -> list[Entry]:
        """The next epochs, or the next entry of another kind."""
        epochs = takewhile(lambda entry: entry.kind == "metrics", islice(self._pending, MOST_EPOCHS))
        return list(epochs) or list(islice(self._pending, 1))

    def _send(self) -> None:
        while self._pending and time.monotonic() >= self._next_try and not self._is_over():
            group = self._next_group()
            try:
                self._send_group(group)
            except TrackingError as error:
                self.problem = error.message + (f" ({error.hint})" if error.hint else "")
                if self._pause == FIRST_PAUSE:
                    self._on_problem(self.problem)
                self._steps.clear()  # The server may have stored what it did not confirm.
                self._is_new = False
                self._next_try = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return
            self._pause = FIRST_PAUSE
            if self._deadline is not None:
                self._deadline = time.monotonic() + self._patience
            for entry in group:
                self._pending.remove(entry)
            last = {**self._sent.last} | {entry.writer: entry.number for entry in group}
            is_done = group[-1].kind == "end" and not self._pending
            self._note(replace(self._sent, last=last, store=self._store.identity, is_done=is_done))

    def _send_group(self, group: Sequence[Entry]) -> None:
        entry, content = group[0], group[0].content
        if not self._sent.run_id:
            self._create_run()
        if entry.kind == "run":
            self._store.describe_run(self._sent.run_id, NewRun.from_json(content["run"]))
        elif entry.kind == "metrics":
            self._send_epochs([one.content for one in group])
        elif entry.kind == "artifacts":
            with self._spool.inside(content["folder"]).fetched() as folder:
                self._store.log_artifacts(self._sent.run_id, folder)
        elif entry.kind == "model":
            stored = self._spool.inside(content["file"]), self._spool.inside(content["example"])
            with stored[0].fetched() as file, stored[1].fetched() as example:
                self._store.log_model(self._sent.run_id, file, content["gamma"], example)
        elif entry.kind == "end":
            ending = content["status"], content["stop_reason"], content["time_ms"], content["tags"]
            self._store.finish(self._sent.run_id, *ending)

    def _create_run(self) -> None:
        """Create the run, unless an earlier attempt did and its id was lost, and note its id before anything else is sent."""
        new = self._spool.new_run()
        assert new is not None, "a spool without a run says how it is created"
        if parent := new.tags.get(PARENT_TAG):
            new = replace(new, tags={**new.tags, PARENT_TAG: self._parents.get(parent, parent)})
        made = self._store.find_made(new)
        self._note(replace(self._sent, run_id=made or self._store.create_run(new), store=self._store.identity))
        self._is_new = made is None

    def _note(self, sent: Sent) -> None:
        """Note what was sent, here and beside the spool."""
        self._sent = sent
        sent.save(self._spool)

    def _send_epochs(self, contents: Sequence[Mapping[str, Any]]) -> None:
        """Send the values that the run does not have; from then on they count as sent."""
        epochs = []
        for one in contents:
            step = one["step"]
            new: dict[str, float] = {}
            for key in (key for key in one["metrics"] if "/" in key):
                if key not in self._steps:
                    self._steps[key] = set() if self._is_new else self._store.logged_steps(self._sent.run_id, key)
                if step not in self._steps[key]:
                    self._steps[key].add(step)
                    new[key] = one["metrics"][key]
            epochs.append(Epoch(step, new, one["time_ms"]))
        if any(epoch.metrics for epoch in epochs):
            self._store.log_epochs(self._sent.run_id, epochs)
        self._next_epochs = time.monotonic() + GATHER_SECONDS


def replay_leftovers(storage: StoragePath, store: TrackingStore, timeout: float) -> dict[str, str]:
    """Send the rest of all spools in a folder of run folders, except those that a living driver sends.

    A run that the store has lost, with its database, is created again. Runs that a user has deleted and runs of other stores are left out.
    After the first failure, for `timeout` seconds, no other spool is tried. Returns reasons by the name of the run folder.
    """
    problems: dict[str, str] = {}
    replaced: dict[str, str] = {}
    # Launches first: the runs below a launch name its id, which changes if it is created again.
    spools = [Spool(storage / name) for name in sorted(storage.names(), key=lambda name: (name[:7] != "launch.", name))]
    with ThreadPoolExecutor(READERS) as readers:
        left = [one for one in readers.map(lambda spool: _left(spool, store), spools) if one]
    with heartbeat(storage) if left else nullcontext():
        for spool, sent in left:
            claim = _claim(spool)
            if claim in _sending or living_holder(claim):
                continue
            problem = next(iter(problems.values()), None) or _replay(spool, sent, store, timeout, replaced)
            if problem:
                problems[spool.folder.name] = problem
    return problems


def _left(spool: Spool, store: TrackingStore) -> tuple[Spool, Sent] | None:
    """A spool and what was sent of it, where something is left to be sent to the store; else None."""
    sent = Sent.load(spool)
    if sent is None:
        return None
    is_lost = store.identity.replaces(sent.store)
    is_left = is_lost or not (sent.is_done or all(map(sent.has, spool.read())))
    return (spool, sent) if is_left else None


def _claim(spool: Spool) -> StoragePath:
    """Name under which the sending of a spool is claimed, which is not that of its run: another command may send what is left of it."""
    return spool.folder.parent / f"{spool.folder.name}.spool"


def _replay(spool: Spool, sent: Sent, store: TrackingStore, timeout: float, replaced: dict[str, str]) -> str | None:
    """Send one spool; returns the reason if part of it could not be sent. `replaced`: former → new ids of runs created again."""
    try:
        state = store.state_of(sent.run_id) if sent.run_id else "lost"
    except TrackingError as error:
        return error.message
    elsewhere = sent.store != store.identity and not store.identity.replaces(sent.store)
    if state == "deleted" or (state == "lost" and (elsewhere or spool.new_run() is None)):
        return None
    lost = sent.run_id if state == "lost" else None
    problem = Sender(spool, None, store, lost=lost, parents=replaced).start().drain(timeout)
    replaced[sent.run_id] = spool.run_id
    return problem
