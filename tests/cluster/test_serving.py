"""A served model under 200 mixed requests: right answers or a status 4xx with a reason, one process throughout, memory flat."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.tracking.registry import register, set_alias
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from tests.exported import ATTRIBUTES, GAMMA, NAMES, SEEN, array_file, scores_of, write_model, write_pictures
from tests.mlflow_server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ROUNDS = 7
LARGE = 20 * 2**20
MOST_GROWTH = 64 * 2**20
"""Largest growth of the memory, in bytes, from the end of the second round to that of the last."""


class ModelServer(Server):
    """`mlflow models serve` of the champion in the database of its folder."""

    @property
    def command(self) -> Sequence[str]:
        model = ("-m", "models:/mgmrn-X@champion", "--env-manager", "local", "--workers", "1")
        return (sys.executable, "-m", "mlflow", "models", "serve", *model)

    @property
    def server_environment(self) -> Mapping[str, str]:
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db", "OMP_NUM_THREADS": "1"}

    def post(self, body: bytes, content_type: str) -> tuple[int, str]:
        """Status and body of an answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.uri}/invocations", body, {"Content-Type": content_type})
        try:
            with opener.open(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        started = psutil.Process(self.process.pid)
        return [started, *started.children(recursive=True)]


@dataclass(frozen=True)
class Case:
    """A request and its expected answer."""

    name: str
    body: bytes
    status: int = 200
    reason: str = ""
    """Part of the message of a refusal."""
    best: tuple[str, ...] = ()
    """Best class of each picture of an answer."""
    content_type: str = "application/json"


@pytest.fixture
def server(tmp_path: Path, tables: Path) -> Iterator[ModelServer]:
    shutil.copy(tables, tmp_path / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = store.create_parent("run", {})
    store.log_model(run_id, write_model(tmp_path / "model.pt"), GAMMA, write_pictures(tmp_path)[0])
    uri = store.get(run_id).tags[MODEL_TAG]
    set_alias(store, register(store, "mgmrn-X", uri, run_id, {}, ""), "champion")
    server = ModelServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def ask(*contents: bytes, **params: Any) -> bytes:
    rows = [{"image": base64.b64encode(content).decode()} for content in contents]
    return json.dumps({"dataframe_records": rows} | ({"params": params} if params else {})).encode()


def cases(folder: Path) -> list[Case]:
    paths = write_pictures(folder)
    first, second = (path.read_bytes() for path in paths)
    coded = base64.b64encode(first).decode()
    bests = tuple(NAMES[best] for best in (scores_of(paths) - GAMMA * SEEN).argmax(axis=1))
    with Image.open(paths[0]) as picture:
        pixels = np.asarray(picture)
    vectors = np.random.default_rng(8).random((3, len(ATTRIBUTES))).astype(np.float32)
    given = json.dumps({name: row.tolist() for name, row in zip(("emu", "moa", "rhea"), vectors, strict=True)})
    chosen = ("emu", "moa", "rhea")[scores_of(paths[:1], vectors)[0].argmax()]
    bitmap = folder / "large.bmp"
    Image.fromarray(np.random.default_rng(2).integers(256, size=(2700, 2600, 3), dtype=np.uint8)).save(bitmap)
    large = bitmap.read_bytes()
    assert len(large) > LARGE
    best_of_large = NAMES[(scores_of([bitmap])[0] - GAMMA * SEEN).argmax()]
    huge = io.BytesIO()
    Image.new("1", (30000, 5000)).save(huge, "PNG")
    split = {"dataframe_split": {"columns": ["image"], "data": [[coded]]}}
    return [
        *(Case(f"picture {n}", ask(first), best=bests[:1]) for n in range(8)),
        Case("other picture", ask(second), best=bests[1:]),
        Case("two pictures", ask(first, second), best=bests),
        Case("forty pictures", ask(*[first] * 40), best=bests[:1] * 40),
        Case("split", json.dumps(split).encode(), best=bests[:1]),
        Case("inputs", json.dumps({"inputs": {"image": [coded]}}).encode(), best=bests[:1]),
        Case("array", ask(array_file(pixels)), best=bests[:1]),
        Case("classes", ask(first, classes=given), best=(chosen,)),
        Case("large picture", ask(large), best=(best_of_large,)),
        Case("large rubbish", ask(b"\xff" * LARGE), 400, "this is no picture"),
        Case("large and cut", ask(large[: LARGE - 999]), 400, "cannot be decoded"),
        Case("large text", b"x" * LARGE, 400, "JSON"),
        Case("small file of a huge picture", ask(huge.getvalue()), 400, "50 million"),
        Case("one of two is broken", ask(first, second[:700]), 400, "row 1"),
        Case("no base64", b'{"dataframe_records": [{"image": "%%%"}]}', 400, "no picture"),
        Case("a number", b'{"dataframe_records": [{"image": 7}]}', 400),
        Case("pixels in JSON", json.dumps({"inputs": pixels[:4, :4].tolist()}).encode(), 400),
        Case("other column", b'{"dataframe_records": [{"picture": "AAAA"}]}', 400, "image"),
        Case("no rows", b'{"dataframe_records": []}', 400),
        Case("a list", b"[1, 2]", 400, "list"),
        Case("empty", b"", 400, "JSON"),
        Case("no classes", ask(first, top_k=0), 400, "top_k must be at least 1"),
        Case("another type", first, 415, content_type="image/png"),
    ]


@pytest.mark.timeout(900)
def test_two_hundred_mixed_requests(server: ModelServer, tmp_path: Path) -> None:
    asked = cases(tmp_path)
    assert len(asked) * ROUNDS >= 200
    alive = [process.pid for process in server.processes()]
    memory = []
    for _ in range(ROUNDS):
        for case in asked:
            status, body = server.post(case.body, case.content_type)
            assert status == case.status, (case.name, body[:500])
            answer = json.loads(body) if status in (200, 400) else {}
            if status == 200:
                assert tuple(row["classes"][0] for row in answer["predictions"]) == case.best, case.name
            elif status == 400:
                assert case.reason in answer["message"] and "stack_trace" not in answer, (case.name, body[-500:])
        memory.append(sum(process.memory_info().rss for process in server.processes()))
    assert [process.pid for process in server.processes()] == alive, "no process died on the way"
    assert memory[-1] - memory[1] < MOST_GROWTH, [f"{size / 2**20:.0f} MiB" for size in memory]
