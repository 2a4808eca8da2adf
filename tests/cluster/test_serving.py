"""A served model under 200 mixed requests: right answers or a status 4xx with a reason, one process throughout, memory flat."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from mgmrn.data.images import decode, for_evaluation
from mgmrn.model.network import class_scores
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.registry import register, set_alias
from pipeline.tracking.store import TrackingStore
from tests.exported import (
    ATTRIBUTES,
    CLASS_ATTRIBUTES,
    CONFIG,
    GAMMA,
    NAMES,
    SEEN,
    small_model,
    write_model,
    write_pictures,
)

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ROUNDS = 5
LARGE = 20 * 2**20
MOST_GROWTH = 64 * 2**20
"""Of the memory between the end of the second round and the last one."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    status: int
    body: str

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


@dataclass(frozen=True)
class Server:
    address: str
    process: subprocess.Popen[bytes]

    def post(self, body: bytes, content_type: str = "application/json") -> Reply:
        request = urllib.request.Request(f"{self.address}/invocations", body, {"Content-Type": content_type})
        try:
            with DIRECT.open(request, timeout=120) as answer:
                return Reply(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read().decode())

    def is_up(self) -> bool:
        try:
            with DIRECT.open(f"{self.address}/ping", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def processes(self) -> list[psutil.Process]:
        started = psutil.Process(self.process.pid)
        return [started, *started.children(recursive=True)]

    def memory(self) -> int:
        """Of all its processes, in bytes."""
        return sum(process.memory_info().rss for process in self.processes())


@dataclass(frozen=True)
class Case:
    """A request and what must come of it."""

    name: str
    body: bytes
    status: int = 200
    reason: str = ""
    """Part of the message of a refusal."""
    best: tuple[str, ...] = ()
    """Best class of each picture of an answer."""
    content_type: str = field(default="application/json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path, tables: Path) -> Iterator[Server]:
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    run_id = store.create_parent("run", {})
    store.log_model(run_id, write_model(folder / "model.pt"), GAMMA, write_pictures(folder)[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    set_alias(store, register(store, "mgmrn-X", uri, run_id, {}, ""), "champion")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/mgmrn-X@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    made = Server(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 180
        while not made.is_up():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield made
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def picture_file(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def array_file(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def ask(*contents: bytes, **params: Any) -> bytes:
    rows = [{"image": base64.b64encode(content).decode()} for content in contents]
    return json.dumps({"dataframe_records": rows} | ({"params": params} if params else {})).encode()


def best_of(path: Path, class_attributes: np.ndarray, penalty: np.ndarray) -> int:
    images = for_evaluation(decode(path), CONFIG.benchmark.images)[None]
    with torch.inference_mode():
        scores = class_scores(small_model()(images).attributes, torch.from_numpy(class_attributes), CONFIG.loss.scale)
    return int((scores.numpy()[0] - penalty).argmax())


def cases(folder: Path) -> list[Case]:
    paths = write_pictures(folder)
    first, second = (path.read_bytes() for path in paths)
    bests = tuple(NAMES[best_of(path, CLASS_ATTRIBUTES, GAMMA * SEEN)] for path in paths)
    with Image.open(paths[0]) as picture:
        pixels = np.asarray(picture)
    vectors = np.random.default_rng(8).random((3, len(ATTRIBUTES))).astype(np.float32)
    given = json.dumps({name: row.tolist() for name, row in zip(("emu", "moa", "rhea"), vectors, strict=True)})
    chosen = ("emu", "moa", "rhea")[best_of(paths[0], vectors, np.zeros(3))]
    large = Image.fromarray(np.random.default_rng(2).integers(256, size=(2700, 2600, 3), dtype=np.uint8))
    large.save(folder / "large.bmp")
    assert (folder / "large.bmp").stat().st_size > LARGE
    best_of_large = NAMES[best_of(folder / "large.bmp", CLASS_ATTRIBUTES, GAMMA * SEEN)]
    text = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(first).decode()]]}}
    return [
        *(Case(f"picture {n}", ask(first), best=bests[:1]) for n in range(8)),
        *(Case(f"other picture {n}", ask(second), best=bests[1:]) for n in range(4)),
        Case("two pictures", ask(first, second), best=bests),
        Case("forty pictures", ask(*[first] * 40), best=bests[:1] * 40),
        Case("split", json.dumps(text).encode(), best=bests[:1]),
        Case("inputs", json.dumps({"inputs": {"image": [base64.b64encode(first).decode()]}}).encode(), best=bests[:1]),
        Case("array", ask(array_file(pixels)), best=bests[:1]),
        Case("classes", ask(first, classes=given), best=(chosen,)),
        Case("top 1", ask(first, top_k=1), best=bests[:1]),
        Case("large picture", ask((folder / "large.bmp").read_bytes()), best=(best_of_large,)),
        Case("large rubbish", ask(b"\xff" * LARGE), 400, "this is no picture"),
        Case("large and cut", ask((folder / "large.bmp").read_bytes()[: LARGE - 999]), 400, "cannot be decoded"),
        Case("large text", b"x" * LARGE, 400, "JSON"),
        Case(
            "small file of a huge picture", ask(picture_file(Image.new("1", (30000, 5000)), "PNG")), 400, "50 million"
        ),
        Case("cut", ask(first[:700]), 400, "cannot be decoded"),
        Case("no picture", ask(b"no picture"), 400, "neither a picture nor base64"),
        Case("nothing", ask(b""), 400, "this is no picture"),
        Case("one of two is broken", ask(first, second[:700]), 400, "row 1"),
        Case("no base64", b'{"dataframe_records": [{"image": "%%%"}]}', 400, "no picture"),
        Case("a number", b'{"dataframe_records": [{"image": 7}]}', 400, ""),
        Case("pixels in JSON", json.dumps({"inputs": pixels[:4, :4].tolist()}).encode(), 400, ""),
        Case("four channels", ask(array_file(np.zeros((8, 8, 4), np.uint8))), 400, "no picture"),
        Case("a vector", ask(array_file(np.zeros(8, np.uint8))), 400, "no picture"),
        Case("other column", b'{"dataframe_records": [{"picture": "AAAA"}]}', 400, "image"),
        Case("no rows", b'{"dataframe_records": []}', 400, ""),
        Case("a list", b"[1, 2]", 400, "list"),
        Case("no JSON", b"{", 400, "JSON"),
        Case("empty", b"", 400, "JSON"),
        Case("no classes", ask(first, top_k=0), 400, "top_k must be at least 1"),
        Case("classes of other attributes", ask(first, classes='{"emu": [1, 2]}'), 400, "2 attributes instead of 6"),
        Case("another type", first, 415, "", content_type="image/png"),
    ]


def check(case: Case, reply: Reply) -> None:
    assert reply.status == case.status, (case.name, reply.body[:500])
    if case.status == 200:
        found = json.loads(reply.body)["predictions"]
        assert tuple(row["classes"][0] for row in found) == case.best, case.name
    elif case.status == 400:
        assert case.reason in reply.message, (case.name, reply.message[-500:])
        assert "stack_trace" not in json.loads(reply.body), case.name


@pytest.mark.timeout(900)
def test_two_hundred_mixed_requests(server: Server, folder: Path) -> None:
    asked = cases(folder)
    assert len(asked) * ROUNDS >= 200
    alive = [process.pid for process in server.processes()]
    memory = []
    for _ in range(ROUNDS):
        for case in asked:
            check(case, server.post(case.body, case.content_type))
        memory.append(server.memory())
    assert [process.pid for process in server.processes()] == alive, "no process died on the way"
    assert memory[-1] - memory[1] < MOST_GROWTH, [f"{size / 2**20:.0f} MiB" for size in memory]
    assert server.is_up()
