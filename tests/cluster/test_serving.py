"""A served model under 200 mixed requests: right answers or a status 4xx with a reason, one process throughout, memory flat."""

import base64
import io
import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.tracking.registry import register, set_alias
from pipeline.tracking.store import MODEL_TAG, TrackingStore
from tests.exported import GAMMA, NAMES, SEEN, scores_of, write_model, write_pictures
from tests.mlflow_server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ROUNDS = 10
LARGE = 20 * 2**20
MOST_GROWTH = 64 * 2**20
"""Largest growth of the memory, in bytes, from the end of the second round to that of the last."""


class ModelServer(Server):
    """`mlflow models serve` of the champion in the store of a tracking server."""

    tracking_uri = ""

    @property
    def command(self) -> Sequence[str]:
        model = ("-m", "models:/mgmrn-X@champion", "--env-manager", "local", "--workers", "1")
        return (sys.executable, "-m", "mlflow", "models", "serve", *model)

    @property
    def server_environment(self) -> Mapping[str, str]:
        return {"MLFLOW_TRACKING_URI": self.tracking_uri, "OMP_NUM_THREADS": "1"}

    def post(self, body: bytes) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.uri}/invocations", body, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        started = psutil.Process(self.process.pid)
        return [started, *started.children(recursive=True)]


@pytest.fixture
def server(tmp_path: Path, tables: Path) -> Iterator[ModelServer]:
    shutil.copy(tables, tmp_path / "server.db")
    with Server(tmp_path) as tracking:
        store = TrackingStore.connect(tracking.uri)
        run_id = store.create_parent("run", {})
        store.log_model(run_id, write_model(tmp_path / "model.pt"), GAMMA, write_pictures(tmp_path)[0])
        uri = store.get(run_id).tags[MODEL_TAG]
        set_alias(store, register(store, "mgmrn-X", uri, run_id, {}, ""), "champion")
        served = ModelServer(tmp_path)
        served.tracking_uri = tracking.uri
        with served:
            yield served


def ask(*contents: bytes, **params: Any) -> bytes:
    rows = [{"image": base64.b64encode(content).decode()} for content in contents]
    return json.dumps({"dataframe_records": rows} | ({"params": params} if params else {})).encode()


def cases(folder: Path) -> list[tuple[bytes, int, str | tuple[str, ...]]]:
    """Requests, each with its expected status and the best class of each picture or a part of the reason of a refusal."""
    paths = write_pictures(folder)
    first, second = (path.read_bytes() for path in paths)
    bests = tuple(NAMES[best] for best in (scores_of(paths) - GAMMA * SEEN).argmax(axis=1))
    bitmap = folder / "large.bmp"
    Image.fromarray(np.random.default_rng(2).integers(256, size=(2700, 2600, 3), dtype=np.uint8)).save(bitmap)
    large = bitmap.read_bytes()
    assert len(large) > LARGE
    best_of_large = NAMES[(scores_of([bitmap])[0] - GAMMA * SEEN).argmax()]
    huge = io.BytesIO()
    Image.new("1", (30000, 5000)).save(huge, "PNG")
    return [
        *[(ask(first), 200, bests[:1])] * 8,
        (ask(second), 200, bests[1:]),
        (ask(first, second), 200, bests),
        (ask(*[first] * 40), 200, bests[:1] * 40),
        (ask(large), 200, (best_of_large,)),
        (ask(b"\xff" * LARGE), 400, "this is no picture"),
        (ask(large[: LARGE - 999]), 400, "cannot be decoded"),
        (b"x" * LARGE, 400, "JSON"),
        (ask(huge.getvalue()), 400, "50 million"),
        (ask(first, second[:700]), 400, "row 1"),
        (b'{"dataframe_records": [{"picture": "AAAA"}]}', 400, "image"),
        (b'{"dataframe_records": []}', 400, ""),
        (ask(first, top_k=0), 400, "top_k must be at least 1"),
    ]


@pytest.mark.timeout(900)
def test_two_hundred_mixed_requests(server: ModelServer, tmp_path: Path) -> None:
    asked = cases(tmp_path)
    assert len(asked) * ROUNDS >= 200
    alive = [process.pid for process in server.processes()]
    memory = []
    for _ in range(ROUNDS):
        for request, wanted, expected in asked:
            status, body = server.post(request)
            assert status == wanted, (request[:200], body[:500])
            answer = json.loads(body)
            if status == 200:
                assert tuple(row["classes"][0] for row in answer["predictions"]) == expected
            else:
                assert expected in answer["message"] and "stack_trace" not in answer, (request[:200], body[-500:])
        memory.append(sum(process.memory_info().rss for process in server.processes()))
    assert [process.pid for process in server.processes()] == alive, "no process died on the way"
    assert memory[-1] - memory[1] < MOST_GROWTH, [f"{size / 2**20:.0f} MiB" for size in memory]
