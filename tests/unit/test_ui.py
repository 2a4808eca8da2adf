"""Addresses of pages of MLflow's UI, and the server that shows them."""

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.analysis.views import grid_views
from pipeline.ports import free_port
from pipeline.tracking.store import TrackingStore
from pipeline.tracking.ui import MODE, pages

BASE = "http://127.0.0.1:5000"
ROOT = Path(__file__).resolve().parents[2]


def query(address: str) -> dict[str, str]:
    """Query of a page, which stands behind the #."""
    return {key: value for key, (value,) in parse_qs(urlsplit(urlsplit(address).fragment).query).items()}


def test_pages_of_everything_of_a_grid_of_a_search_and_of_a_run(store: TrackingStore) -> None:
    grid, search = (
        TrackingStore.connect(store.uri, f"mgmrn/{name}").experiment_id for name in ("ablation/parts", "search/rates")
    )
    everything = pages(store, BASE, None)
    assert everything["mgmrn/train"] == f"{BASE}/#/experiments/{store.experiment_id}/runs?{MODE}"
    assert list(everything) == ["mgmrn/search/rates", "mgmrn/ablation/parts", "mgmrn/train"]
    of_grid = pages(store, BASE, "parts")
    assert "viewStateShareKey" not in "".join(of_grid.values()), "a link to a view that does not exist shows an error"
    TrackingStore.connect(store.uri, "mgmrn/ablation/parts").describe("", grid_views("final", "ausuc"))
    of_grid = pages(store, BASE, "parts")
    assert all(address.startswith(f"{BASE}/#/experiments/{grid}/runs?") for address in of_grid.values())
    variants = {"workflowType": "machine_learning", "viewStateShareKey": "variants"}
    assert query(of_grid["variants"]) == variants
    assert query(of_grid["variants as charts"]) == variants | {"compareRunsMode": "CHART"}
    assert query(of_grid["runs of all seeds"]) == variants | {"viewStateShareKey": "runs"}
    of_search = pages(store, BASE, "rates")
    assert list(of_search) == ["runs", "runs as charts"] and f"experiments/{search}/" in of_search["runs"]
    run_id = store.create_parent("a run", {"mgmrn.kind": "run"})
    page = f"{BASE}/#/experiments/{store.experiment_id}/runs/{run_id}"
    tabs = {"run": "", "curves": "/model-metrics", "artifacts": "/artifacts"}
    assert pages(store, BASE, run_id) == {title: f"{page}{tab}?{MODE}" for title, tab in tabs.items()}


def test_a_name_of_nothing_and_a_port_that_is_taken(store: TrackingStore, typed: Callable[..., Any]) -> None:
    code, _, err = typed("ui", "nothing", "--links", f"--tracking-uri={store.uri}")
    assert code == 2 and "there is no finished run called nothing" in err
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, _, err = typed("ui", f"--port={port}", f"--tracking-uri={store.uri}")
    assert code == 3 and f"port {port} is taken" in err


@pytest.mark.browser
def test_a_server_shows_the_files_of_a_moved_store_until_it_is_interrupted(
    store: TrackingStore, tmp_path: Path
) -> None:
    port, run_id = free_port(), store.create_parent("a run", {})
    (tmp_path / "a.csv").write_text("x")
    store.log_file(run_id, tmp_path / "a.csv", "eval")
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name} moved"))
    words = [sys.executable, "-m", "pipeline", "ui", f"--port={port}", f"--tracking-uri=sqlite:///{moved}/mlflow.db"]
    ui = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert ui.stdout is not None
        title, address = ui.stdout.readline().split()
        assert (title, address) == (
            "mgmrn/train",
            f"http://127.0.0.1:{port}/#/experiments/{store.experiment_id}/runs?{MODE}",
        )
        file = f"http://127.0.0.1:{port}/get-artifact?run_uuid={run_id}&path=eval/a.csv"
        assert urllib.request.urlopen(file, timeout=20).read() == b"x"
    finally:
        ui.send_signal(signal.SIGINT)
        assert ui.wait(60) == 0
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
