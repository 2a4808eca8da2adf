"""Where a known answer is looked for without MLflow, and that nothing of it is loaded for that."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking.glance import glance
from pipeline.tracking.store import PASSWORD_VARIABLE, TOKEN_VARIABLE, TRAIN, USERNAME_VARIABLE, TrackingStore
from tests.mlflow_server import Server

TAGS = {"mgmrn.config_hash": "h1", "mgmrn.split": "tune", "mgmrn.result": "{}"}
EXPERIMENT = {"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}
RUN = {
    "info": {"run_id": "a" * 32, "run_name": "a run", "experiment_id": "7", "status": "FINISHED"},
    "data": {"tags": [{"key": "mgmrn.split", "value": "tune"}]},
}


class Answering(BaseHTTPRequestHandler):
    """Answers as `answers` says: bytes, or a status."""

    answers: ClassVar[dict[str, bytes | int]] = {}
    seen: ClassVar[list[str | None]] = []
    """The credentials of every call."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(b"OK")
            return
        self.seen.append(self.headers["Authorization"])
        self._send(self.answers[self.path.partition("?")[0].rpartition("mlflow/")[2]])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _send(self, answer: bytes | int) -> None:
        self.send_response(answer if isinstance(answer, int) else 200)
        self.end_headers()
        if isinstance(answer, bytes):
            self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts a server that gives these answers; its address."""
    for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(experiment: object = EXPERIMENT, runs: object = None) -> str:
        answers = {
            call: answer if isinstance(answer, bytes | int) else json.dumps(answer).encode()
            for call, answer in (("experiments/get-by-name", experiment), ("runs/search", runs))
        }
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answering,), {"answers": answers}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    Answering.seen.clear()
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_run_on_a_server_is_found(answering: Callable[..., str]) -> None:
    found = glance(answering(runs={"runs": [RUN]}), TRAIN).find_finished("h1", "tune")
    assert found is not None
    assert (found.run_id, found.name, found.status, found.experiment_id) == ("a" * 32, "a run", "FINISHED", "7")
    assert found.tags == {"mgmrn.split": "tune"}


@pytest.mark.parametrize(
    "answers",
    [
        {"runs": {}},
        {"runs": {"runs": []}},
        {"experiment": 404},
        {"experiment": {"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}},
        {"experiment": 401},
        {"runs": 500},
        {"runs": b"<html>a login page</html>"},
        {"runs": b"[]"},
        {"runs": {"runs": [{"info": {}}]}},
    ],
    ids=str,
)
def test_what_is_not_as_expected_is_nothing_found(answering: Callable[..., str], answers: dict[str, object]) -> None:
    assert glance(answering(**{"runs": {"runs": [RUN]}, **answers}), TRAIN).find_finished("h1", "tune") is None


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({}, None),
        ({USERNAME_VARIABLE: "ann", PASSWORD_VARIABLE: "pw"}, "Basic YW5uOnB3"),
        ({TOKEN_VARIABLE: "t0k"}, "Bearer t0k"),
    ],
    ids=["none", "password", "token"],
)
def test_it_logs_in_as_mlflow_does(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sent: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    glance(answering(runs={}), TRAIN).find_finished("h1", "tune")
    assert Answering.seen == [sent, sent]


def test_the_experiment_is_asked_for_once(answering: Callable[..., str]) -> None:
    looking = glance(answering(runs={"runs": [RUN]}), TRAIN)
    assert all(looking.find_finished(config_hash, "tune") for config_hash in ("h1", "h2", "h3"))
    assert len(Answering.seen) == 4, "one call for the experiment, one for each run"


def test_a_server_that_is_away_is_an_error_at_once() -> None:
    with pytest.raises(TrackingError, match="unreachable"):
        glance("http://127.0.0.1:9", TRAIN).find_finished("h1", "tune")


@pytest.mark.parametrize("uri", ["postgresql://h/db", "databricks", ""])
def test_nothing_is_found_elsewhere(uri: str) -> None:
    assert glance(uri, TRAIN).find_finished("h1", "tune") is None


@pytest.mark.parametrize("uri", ["sqlite:///nowhere.db", "http://127.0.0.1:9"])
def test_it_loads_no_mlflow(uri: str) -> None:
    code = f"""
import sys, contextlib, pipeline.train.launch
from pipeline.tracking.glance import glance
with contextlib.suppress(Exception):
    glance({uri!r}, "x").find_finished("h", "tune")
print("mlflow" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.cluster
def test_a_real_server_is_asked_in_its_own_words(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    try:
        store, looking = TrackingStore.connect(server.uri), glance(server.uri, TRAIN)
        assert looking.find_finished("h1", "tune") is None
        for status, config_hash in (("FINISHED", "h1"), ("FINISHED", "h1"), ("FAILED", "h1"), ("FINISHED", "h2")):
            store.finish(store.create_parent("a run", TAGS | {"mgmrn.config_hash": config_hash}), status, "why")
        for config_hash, split in (("h1", "tune"), ("h2", "tune"), ("h1", "final"), ("h3", "tune")):
            wanted, found = store.find_finished(config_hash, split), looking.find_finished(config_hash, split)
            assert (wanted is None) == (found is None) == ((config_hash, split) not in {("h1", "tune"), ("h2", "tune")})
            if wanted and found:
                assert (found.run_id, found.name, found.tags) == (wanted.run_id, wanted.name, wanted.tags)
        latest = looking.find_finished("h1", "tune")
        assert latest is not None
        store.client.delete_run(latest.run_id)
        earlier = looking.find_finished("h1", "tune")
        assert earlier is not None and earlier.run_id != latest.run_id
    finally:
        server.kill()
