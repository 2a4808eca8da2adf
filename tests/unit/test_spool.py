"""Spool of a run: every line reaches the store exactly once, whatever dies."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.spool import Epoch, NewRun, RunState, Spool, StoreIdentity
from pipeline.storage import StoragePath
from pipeline.tracking import sender as sender_module
from pipeline.tracking.sender import Sender, replay_leftovers
from pipeline.tracking.store import TrackingStore
from tests.mlflow_server import Server
from tests.ray.command import wait_until


class FakeStore:
    """Keeps what it is sent, duplicates too; its next calls fail `before` or `after` they do something, or not at all."""

    def __init__(self, failures: Sequence[str] = ()) -> None:
        self.values: list[tuple[str, int, float]] = []
        self.sent: list[object] = []
        self.made: list[NewRun] = []
        self.calls: list[str] = []
        self.identity = StoreIdentity("a store", "an experiment", 1)
        self.away = False
        self.failures = list(failures)

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(step, value) for key, step, value in self.values if key == "train/loss"]

    def _call(self, name: str, action: Callable[[], object]) -> None:
        self.calls.append(name)
        failure = self.failures.pop(0) if self.failures else ""
        if self.away or failure == "before":
            raise TrackingError("unreachable")
        action()
        if failure == "after":
            raise TrackingError("the answer was lost")

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        self._call("history", lambda: None)
        return {step for name, step, _ in self.values if name == key}

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        values = [(key, epoch.step, value) for epoch in epochs for key, value in epoch.metrics.items()]
        self._call("metrics", lambda: self.values.extend(values))

    def find_made(self, new: NewRun) -> str | None:
        self._call("find", lambda: None)
        return "r" if new in self.made else None

    def create_run(self, new: NewRun) -> str:
        self._call("create", lambda: self.made.append(new))
        return "r"

    def describe_run(self, run_id: str, new: NewRun) -> None:
        self._call("describe", lambda: None)

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        self._call("artifacts", lambda: self.sent.append(folder.name))

    def log_model(self, run_id: str, file: Path, gamma: float, example: Path) -> None:
        self._call("model", lambda: self.sent.append((file.name, gamma, example.name)))

    def state_of(self, run_id: str) -> RunState:
        if self.away:
            raise TrackingError("unreachable")
        return "active"

    def finish(self, run_id: str, status: str, stop_reason: str, time_ms: int, tags: Mapping[str, str]) -> None:
        self._call("end", lambda: self.sent.append((status, stop_reason, *tags.values())))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoragePath, "poll_seconds", 0.002)
    pauses = {"FIRST_PAUSE": 0.002, "LONGEST_PAUSE": 0.01, "GATHER_SECONDS": 0.0}
    for name, seconds in pauses.items():
        monkeypatch.setattr(sender_module, name, seconds)


@pytest.fixture
def spool(storage: StoragePath) -> Spool:
    return Spool(storage / "run")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def append(spool: Spool, *steps: int) -> None:
    for step in steps:
        spool.append(step, {"epoch": step, "train/loss": float(step)})


def drain(spool: Spool, store: FakeStore, seconds: float = 5) -> str | None:
    """Sends a spool until it is empty; returns the problem where that takes longer."""
    return Sender(spool, "r", store).start().drain(seconds)


def test_metrics_artifacts_model_and_end_arrive_in_order_from_a_moved_folder(spool: Spool, store: FakeStore) -> None:
    append(spool, 1)
    spool.append_artifacts(spool.folder / "artifacts")
    spool.append_model(spool.folder / "model.pt", 0.5, spool.folder / "example.jpg")
    spool.append_end("FINISHED", "done", {"mgmrn.result": "1"})
    moved = spool.folder.parent / "moved"
    with spool.folder.fetched() as folder, moved.filled() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
    spool.folder.delete()
    spool = Spool(moved)
    assert not spool.is_done()
    assert drain(spool, store) is None
    assert spool.is_done()
    assert store.calls == ["history", "metrics", "artifacts", "model", "end"]
    assert store.values == [("train/loss", 1, 1.0)]
    model = ("model.pt", 0.5, "example.jpg")
    assert store.sent == ["artifacts", model, ("FINISHED", "done", "1")]


def test_a_new_run_is_not_asked_for_the_steps_that_it_has_until_a_request_fails(spool: Spool, store: FakeStore) -> None:
    spool.append_run(NewRun("x", {}))
    append(spool, 1)
    sender = Sender(spool, "", store).start()
    wait_until(lambda: len(store.losses) == 1, "the first step is sent")
    store.failures = ["after"]
    append(spool, 2)
    assert sender.drain(5) is None
    assert store.losses == [(1, 1.0), (2, 2.0)]
    assert store.calls == ["find", "create", "describe", "metrics", "metrics", "history"]


@pytest.mark.parametrize("failures", [["", "after"], ["before", "", "after", "before"]])
def test_a_run_is_created_once_though_the_answer_is_lost(spool: Spool, store: FakeStore, failures: list[str]) -> None:
    store.failures = failures
    spool.append_run(NewRun("x", {}))
    append(spool, 1)
    assert Sender(spool, "", store).start().drain(5) is None
    assert len(store.made) == 1 and store.losses == [(1, 1.0)]


def test_a_run_whose_driver_was_killed_before_it_noted_the_id_is_found_by_the_next_one(
    spool: Spool, storage: StoragePath, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append_run(NewRun("x", {}))
    append(spool, 1)
    create = store.create_run
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr(store, "create_run", lambda new: (create(new), 1 / 0))
        Sender(spool, "", store).start().drain(5)
    assert len(store.made) == 1 and not spool.run_id
    assert replay_leftovers(storage, store, 5) == {}
    assert len(store.made) == 1 and store.losses == [(1, 1.0)]


def test_what_a_store_missed_is_replayed_at_the_next_start(
    spool: Spool, store: FakeStore, storage: StoragePath
) -> None:
    store.away = True
    append(spool, 1)
    spool.append_end("FINISHED", "done")
    assert drain(spool, store, 0.05) == "unreachable"
    assert replay_leftovers(storage, store, 0.05) == {"run": "unreachable"}
    store.away = False
    assert replay_leftovers(storage, store, 5) == {}
    assert (store.losses, store.sent) == ([(1, 1.0)], [("FINISHED", "done")])
    calls = len(store.calls)
    assert replay_leftovers(storage, store, 5) == {}
    assert len(store.calls) == calls


def test_what_was_sent_before_is_not_sent_again(spool: Spool, store: FakeStore) -> None:
    append(spool, 1)
    spool.append_end("KILLED", "interrupted")
    assert drain(spool, store) is None
    store.calls.clear()
    append(spool, 2)
    spool.append_end("FINISHED", "done")
    assert drain(spool, store) is None
    assert [call for call in store.calls if call != "history"] == ["metrics", "end"]
    assert store.losses == [(1, 1.0), (2, 2.0)]
    assert store.sent == [("KILLED", "interrupted"), ("FINISHED", "done")]


def test_two_senders_of_one_spool_send_one_after_another(spool: Spool, store: FakeStore, storage: StoragePath) -> None:
    append(spool, 1)
    first, other = Sender(spool, "r", store).start(), FakeStore()
    wait_until(lambda: len(store.losses) == 1, "the first step is sent")
    store.away = True
    append(spool, 2)
    assert replay_leftovers(storage, other, 5) == {}, "what a living driver sends is left to it"
    assert drain(spool, other, 0.05) == "another command is sending them"
    second = Sender(spool, "r", other).start()
    first.drain(0.0)
    assert second.drain(5) is None
    assert (store.losses, other.losses) == ([(1, 1.0)], [(2, 2.0)])


@pytest.mark.parametrize("outside", ["/etc", "../other", "link"])
def test_an_entry_that_names_files_outside_the_run_is_refused(store: FakeStore, tmp_path: Path, outside: str) -> None:
    spool = Spool(StoragePath.parse(tmp_path / "run"))
    append(spool, 1)
    (tmp_path / "run" / "link").symlink_to("/etc")
    forged = {"kind": "artifacts", "folder": outside}
    (spool.folder / "spool" / "00000002-forged").write(json.dumps(forged).encode())
    with pytest.raises(UserError, match="names a file outside of its run"):
        drain(spool, store)
    assert (store.sent, store.losses) == ([], [(1, 1.0)])


def test_a_file_that_was_not_written_whole_harms_no_other(spool: Spool, store: FakeStore) -> None:
    append(spool, 1)
    for name in (".00000002-x.0123456789abcdef", "00000002-x", "notes"):
        (spool.folder / "spool" / name).write(b'{"kind": "metrics", "step": 2, "met')
    assert len(spool.read()) == 1
    append(spool, 3)
    assert drain(spool, store) is None
    assert store.losses == [(1, 1.0), (3, 3.0)]


def test_a_defect_in_the_thread_is_raised(spool: Spool, store: FakeStore) -> None:
    sender = Sender(spool, "r", store, Mock(side_effect=ZeroDivisionError)).start()
    append(spool, 1)
    with pytest.raises(ZeroDivisionError):
        sender.drain(5)


@settings(max_examples=20)
@given(
    steps=st.lists(st.integers(1, 4), max_size=8),
    failures=st.lists(st.sampled_from(["", "before", "after"]), max_size=20),
    restarts=st.sets(st.integers(0, 8)),
)
def test_every_step_arrives_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], failures: list[str], restarts: set[int]
) -> None:
    spool, store = Spool(StoragePath.parse(tmp_path_factory.mktemp("run"))), FakeStore(failures)
    sender = Sender(spool, "r", store).start()
    for position, step in enumerate(steps):
        spool.append(step, {"train/loss": 0.0, "train/lr": 1.0})
        if position in restarts:
            sender.drain(0.0)
            sender = Sender(spool, "r", store).start()
    assert sender.drain(10) is None
    wanted = sorted((key, step) for key in ("train/loss", "train/lr") for step in set(steps))
    assert sorted((key, step) for key, step, _ in store.values) == wanted


@pytest.mark.cluster
def test_a_real_server_that_is_killed_and_comes_back_gets_everything_once(tmp_path: Path) -> None:
    spool = Spool(StoragePath.parse(tmp_path / "run"))
    with Server(tmp_path) as server:
        store = TrackingStore.connect(server.uri)
        run_id = store.create_parent("launch", {"mgmrn.kind": "train"})
        shown: list[int] = []
        sender = Sender(spool, run_id, store, lambda step, metrics: shown.append(step)).start()
        append(spool, 1, 2)
        wait_until(lambda: store.logged_steps(run_id, "train/loss") == {1, 2}, "both steps are sent")
        server.kill()
        append(spool, 3, 4, 4, 5)
        wait_until(lambda: sender.problem is not None, "the problem is noticed")
        wait_until(lambda: shown == [1, 2, 3, 4, 4, 5], "all is shown")
        server.start()
        spool.append_end("FINISHED", "done")
        assert sender.drain(60) is None
        assert [metric.step for metric in store.client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5]
        assert store.get(run_id).status == "FINISHED"
