"""Pages of MLflow's UI that show a launch, a grid, a search or a run, and the server that shows them."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

from mgmrn.errors import ResourceError
from pipeline.analysis.views import VIEW_TAG
from pipeline.databases import SQLITE
from pipeline.errors import TrackingError
from pipeline.ports import LOOPBACK
from pipeline.tracking.connection import check_reachable
from pipeline.tracking.store import TrackingStore, files_beside

MODE = "workflowType=machine_learning"
"""Query by which the UI shows what belongs to model training."""
START_SECONDS = 60.0
"""Time that MLflow's server gets to answer."""
STANDARD_ERROR = 2
"""File of what the server prints: standard output belongs to the result."""


def pages(store: TrackingStore, base: str, name: str | None) -> dict[str, str]:
    """What is shown → address: the experiments without a name, the views of a grid or search, or those of a run.

    Raises `UserError` for a name that is neither.
    """
    experiments = {one.name: one for one in store.experiments("mgmrn/%")}
    tables = {title: f"{base}/#/experiments/{one.experiment_id}/runs?{MODE}" for title, one in experiments.items()}
    if name is None:
        return tables or {"experiments": f"{base}/#/experiments"}
    for kind, rows in (("ablation", "variants"), ("search", "runs")):
        if (title := f"mgmrn/{kind}/{name}") in tables:
            # Experiments of earlier versions have no views.
            view = "&viewStateShareKey=" if VIEW_TAG + rows in experiments[title].tags else None
            shown, runs = (tables[title] + (view + key if view else "") for key in (rows, "runs"))
            found = {rows: shown, f"{rows} as charts": f"{shown}&compareRunsMode=CHART"}
            return found | ({} if rows == "runs" else {"runs of all seeds": runs})
    run = store.find_run(name)
    page = f"{base}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    tabs = {"run": "", "curves": "/model-metrics", "artifacts": "/artifacts"}
    return {title: f"{page}{tab}?{MODE}" for title, tab in tabs.items()}


def serve(uri: str, port: int) -> "subprocess.Popen[bytes]":
    """Start MLflow's server for a database on loopback, and wait until it answers.

    Raises `ResourceError` when the port is taken, or the server ends or does not answer.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ResourceError(f"port {port} is taken ({error.strerror})", "name another with --port") from error
    words = ["server", "--backend-store-uri", uri, "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    words += ["--artifacts-destination", files_beside(uri)] if uri.startswith(SQLITE) else []
    # Its queue of jobs, seven processes, serves features that are not used here.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=STANDARD_ERROR, env=environment)
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        with suppress(TrackingError):
            check_reachable(f"http://{LOOPBACK}:{port}")
            return server
        time.sleep(0.2)
    server.terminate()
    raise ResourceError(f"MLflow's server does not answer on port {port}", "see what it printed above")
