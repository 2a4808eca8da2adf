"""The spool: nothing is lost and nothing is sent twice, whatever dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.errors import UserError
from pipeline.errors import TrackingError
from pipeline.spool import Epoch, NewRun, RunState, Spool, StoreIdentity
from pipeline.tracking import sender as sender_module
from pipeline.tracking.sender import Sender, replay_leftovers
from tests.mlflow_server import Server


class FakeStore:
    """Keeps what it is sent, duplicates too, and fails where it is told to."""

    def __init__(self, failures: list[str] | None = None) -> None:
        self.values: list[tuple[str, int, float]] = []
        self.tags: dict[str, str] = {}
        self.folders: list[Path] = []
        self.models: list[tuple[str, float, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.created: list[NewRun] = []
        self.described: list[tuple[str, NewRun]] = []
        self.states: dict[str, RunState] = {}
        self.identity = StoreIdentity("a store", "an experiment", 1)
        self.away = False
        self.failures = failures or []
        """For each call: `` to succeed, `before` to fail at once, `after` to do it and fail then."""

    def _call(self, name: str, action: Callable[[], None]) -> None:
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

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._call("tags", lambda: self.tags.update(tags))

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        self._call("artifacts", lambda: self.folders.append(folder))

    def log_model(self, run_id: str, file: Path, gamma: float, example: Path) -> None:
        self._call("model", lambda: self.models.append((file.name, gamma, example.name)))

    def create_run(self, new: NewRun) -> str:
        self._call("create", lambda: self.created.append(new))
        return f"run {len(self.created)}"

    def describe_run(self, run_id: str, new: NewRun) -> None:
        self._call("describe", lambda: self.described.append((run_id, new)))

    def state_of(self, run_id: str) -> RunState:
        if self.away:
            raise TrackingError("unreachable")
        return self.states.get(run_id, "active")

    def finish(self, run_id: str, status: str, stop_reason: str, time_ms: int | None = None) -> None:
        self._call("end", lambda: self.ended.append((status, stop_reason)))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(sender_module, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(sender_module, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(sender_module, "GATHER_SECONDS", 0.0)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def test_metrics_tags_artifacts_model_and_end_arrive_in_order(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore()
    spool.append(1, {"epoch": 1, "train/loss": 2.0})
    spool.append_tags({"mgmrn.stop_reason": "done"})
    spool.append_artifacts(tmp_path / "artifacts")
    spool.append_model(tmp_path / "model.pt", 0.5, tmp_path / "example.jpg")
    assert not spool.is_done()
    spool.append_end("FINISHED", "done")
    assert not spool.is_done()
    assert Sender(spool, "r", store).start().drain(5) is None
    assert spool.is_done()
    assert store.calls == ["history", "metrics", "tags", "artifacts", "model", "end"]
    assert store.values == [("train/loss", 1, 2.0)]
    assert (store.folders, store.ended) == ([tmp_path / "artifacts"], [("FINISHED", "done")])
    assert store.models == [("model.pt", 0.5, "example.jpg")]


def test_what_is_appended_while_the_sender_runs_arrives_and_is_shown_once(tmp_path: Path) -> None:
    spool, store, shown = Spool(tmp_path / "spool.jsonl"), FakeStore(), []
    spool.append(1, {"train/loss": 3.0})
    sender = Sender(spool, "r", store, lambda step, metrics: shown.append((step, metrics["train/loss"]))).start()
    spool.append(2, {"train/loss": 2.0})
    until(lambda: len(store.values) == 2)
    spool.append(3, {"train/loss": 1.0})
    assert sender.drain(5) is None
    assert store.values == [("train/loss", 1, 3.0), ("train/loss", 2, 2.0), ("train/loss", 3, 1.0)]
    assert shown == [(2, 2.0), (3, 1.0)]


def test_epochs_are_shown_while_the_store_is_away(tmp_path: Path) -> None:
    spool, store, shown = Spool(tmp_path / "spool.jsonl"), FakeStore(), []
    store.away = True
    sender = Sender(spool, "r", store, lambda step, metrics: shown.append(step)).start()
    for step in (1, 2, 3):
        spool.append(step, {"train/loss": 1.0})
    until(lambda: shown == [1, 2, 3])
    assert store.values == []
    store.away = False
    assert sender.drain(5) is None
    assert [step for _, step, _ in store.values] == [1, 2, 3]


def test_a_resumed_run_reports_an_epoch_again_and_it_is_sent_once(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore()
    for step in (1, 2, 2, 3):
        spool.append(step, {"train/loss": float(step)})
    assert Sender(spool, "r", store).start().drain(5) is None
    spool.append(3, {"train/loss": 3.0, "val/ausuc": 0.5})
    assert Sender(spool, "r", store).start().drain(5) is None
    assert [step for key, step, _ in store.values if key == "train/loss"] == [1, 2, 3]
    assert ("val/ausuc", 3, 0.5) in store.values


def test_what_an_away_store_did_not_get_is_replayed_at_the_next_start(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path / "run-a" / "spool.jsonl"), FakeStore()
    store.away = True
    spool.append(1, {"train/loss": 1.0})
    spool.append_end("FINISHED", "done")
    problem = Sender(spool, "r", store).start().drain(0.05)
    assert problem == "unreachable"
    assert replay_leftovers(tmp_path, store, 0.05) == {"run-a": "unreachable"}
    store.away = False
    assert replay_leftovers(tmp_path, store, 5) == {}
    assert (store.values, store.ended) == ([("train/loss", 1, 1.0)], [("FINISHED", "done")])
    calls = len(store.calls)
    assert replay_leftovers(tmp_path, store, 5) == {}
    assert len(store.calls) == calls


def test_a_spool_that_is_given_to_another_run_is_sent_from_the_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append(1, {"train/loss": 1.0})
    first, second = FakeStore(), FakeStore()
    assert Sender(spool, "first", first).start().drain(5) is None
    assert Sender(spool, "second", second).start().drain(5) is None
    assert first.values == second.values == [("train/loss", 1, 1.0)]


def test_two_senders_of_one_spool_send_one_after_another(tmp_path: Path) -> None:
    spool, slow, other = Spool(tmp_path / "run" / "spool.jsonl"), FakeStore(), FakeStore()
    spool.append(1, {"train/loss": 1.0})
    first = Sender(spool, "r", slow).start()
    until(lambda: len(slow.values) == 1)
    slow.away = True
    spool.append(2, {"train/loss": 2.0})
    assert replay_leftovers(tmp_path, other, 5) == {}, "what a living driver sends is left to it"
    assert Sender(spool, "r", other).start().drain(0.05) == "another command is sending them"
    second = Sender(spool, "r", other).start()
    first.drain(0.0)
    assert second.drain(5) is None
    assert (slow.values, other.values) == ([("train/loss", 1, 1.0)], [("train/loss", 2, 2.0)])


def test_a_sender_that_has_only_just_started_is_left_its_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, store = Spool(tmp_path / "run" / "spool.jsonl"), FakeStore()
    spool.append(1, {"train/loss": 1.0})
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)  # As on a host whose CPUs are busy.
    sender = Sender(spool, "r", store).start()
    assert replay_leftovers(tmp_path, store, 0.1) == {}
    assert sender.problem is None and store.calls == []


def test_draining_goes_on_as_long_as_something_can_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore()
    for step in range(6):
        spool.append(step, {"train/loss": 1.0})
    log = store.log_epochs
    monkeypatch.setattr(sender_module, "MOST_EPOCHS", 1)
    monkeypatch.setattr(store, "log_epochs", lambda *arguments: (time.sleep(0.1), log(*arguments)))
    assert Sender(spool, "r", store).start().drain(0.2) is None
    assert len(store.values) == 6


def test_short_epochs_travel_together_and_wait_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "GATHER_SECONDS", 600.0)
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore()
    sender = Sender(spool, "r", store).start()
    spool.append(1, {"train/loss": 1.0})
    until(lambda: len(store.values) == 1)
    spool.append(2, {"train/loss": 2.0})
    spool.append(3, {"train/loss": 3.0, "val/ausuc": 0.3})
    until(lambda: len(sender._pending) == 2)
    time.sleep(0.05)
    assert store.calls.count("metrics") == 1, "the second epoch waits for the next ones"
    spool.append_tags({"mgmrn.note": "now"})
    until(lambda: "mgmrn.note" in store.tags)
    assert store.calls.count("metrics") == 2, "what came together went together, before what came after it"
    spool.append(4, {"train/loss": 4.0})
    assert sender.drain(5) is None
    losses = [("train/loss", step, float(step)) for step in (1, 2, 3, 4)]
    assert store.values == [*losses[:3], ("val/ausuc", 3, 0.3), losses[3]]


def test_an_epoch_that_was_trained_again_is_sent_once_also_when_both_travel_together(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore(failures=["", "after"])
    for step in (1, 2, 2, 3):
        spool.append(step, {"train/loss": float(step)})
    assert Sender(spool, "r", store).start().drain(5) is None
    assert store.values == [("train/loss", step, float(step)) for step in (1, 2, 3)]


@pytest.mark.parametrize("outside", ["/etc", "{folder}/run/../other", "{folder}/run/link"])
def test_a_line_that_names_files_of_somebody_else_is_refused(tmp_path: Path, outside: str) -> None:
    spool, store = Spool(tmp_path / "run" / "spool.jsonl"), FakeStore()
    spool.append(1, {"train/loss": 1.0})
    (tmp_path / "run" / "link").symlink_to("/etc")
    with spool.path.open("a") as file:
        file.write(json.dumps({"kind": "artifacts", "folder": outside.format(folder=tmp_path)}) + "\n")
    with pytest.raises(UserError, match="names a file outside of its run"):
        Sender(spool, "r", store).start().drain(5)
    assert (store.folders, len(store.values)) == ([], 1)


def test_a_line_that_was_cut_short_harms_no_other(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path / "spool.jsonl"), FakeStore()
    spool.append(1, {"train/loss": 1.0})
    with spool.path.open("ab") as file:
        file.write(b'{"kind": "metrics", "step": 2, "met')
    assert len(list(spool.read())) == 1
    spool.append(3, {"train/loss": 3.0})
    assert Sender(spool, "r", store).start().drain(5) is None
    assert store.values == [("train/loss", 1, 1.0), ("train/loss", 3, 3.0)]


def test_a_defect_in_the_thread_is_not_swallowed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")

    def broken(step: int, metrics: Mapping[str, float]) -> None:
        raise ZeroDivisionError

    sender = Sender(spool, "r", FakeStore(), broken).start()
    spool.append(1, {"train/loss": 1.0})
    with pytest.raises(ZeroDivisionError):
        sender.drain(5)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(1, 4), max_size=8),
    failures=st.lists(st.sampled_from(["", "before", "after"]), max_size=20),
    restarts=st.sets(st.integers(0, 8)),
)
def test_every_step_arrives_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], failures: list[str], restarts: set[int]
) -> None:
    spool, store = Spool(tmp_path_factory.mktemp("spool") / "spool.jsonl"), FakeStore(failures)
    sender = Sender(spool, "r", store).start()
    for position, step in enumerate(steps):
        spool.append(step, {"train/loss": 0.0, "train/lr": 1.0})
        if position in restarts:
            sender.drain(0.0)
            sender = Sender(spool, "r", store).start()
    assert sender.drain(10) is None
    assert sorted((key, step) for key, step, _ in store.values) == sorted(
        (key, step) for key in ("train/loss", "train/lr") for step in set(steps)
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.cluster
def test_a_real_server_that_is_killed_and_comes_back_gets_everything_once(server: Server, tmp_path: Path) -> None:
    from pipeline.tracking.store import TrackingStore

    store = TrackingStore.connect(server.uri)
    run_id = store.create_parent("launch", {"mgmrn.kind": "train"})
    spool, shown = Spool(tmp_path / "run" / "spool.jsonl"), []
    sender = Sender(spool, run_id, store, lambda step, metrics: shown.append(step)).start()
    for step in (1, 2):
        spool.append(step, {"train/loss": 1.0 / step, "val/ausuc": 0.1 * step})
    until(lambda: store.logged_steps(run_id, "val/ausuc") == {1, 2})
    server.kill()
    for step in (3, 4, 4, 5):
        spool.append(step, {"train/loss": 1.0 / step, "val/ausuc": 0.1 * step})
    until(lambda: sender.problem is not None, 60)
    until(lambda: shown == [1, 2, 3, 4, 4, 5], 60)
    server.start()
    (tmp_path / "run" / "files" / "eval").mkdir(parents=True)
    (tmp_path / "run" / "files" / "eval" / "curve.csv").write_text("gamma\n")
    spool.append_artifacts(tmp_path / "run" / "files")
    spool.append_end("FINISHED", "done")
    assert sender.drain(60) is None
    for key in ("train/loss", "val/ausuc"):
        assert [metric.step for metric in store.client.get_metric_history(run_id, key)] == [1, 2, 3, 4, 5]
    assert store.get(run_id).status == "FINISHED"
    assert [file.path for file in store.client.list_artifacts(run_id, "eval")] == ["eval/curve.csv"]
    server.kill()
    with pytest.raises(TrackingError, match="unreachable"):
        TrackingStore.connect(server.uri)
