"""A grid in MLflow's own UI: the parent with its children, its benchmarks side by side, and its artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.ablation.grid import make_grid
from pipeline.ablation.plan import plan_cells
from pipeline.ablation.results import comparisons, log_grid
from pipeline.ports import LOOPBACK
from pipeline.tracking.store import TrackingStore
from pipeline.trials.known import KnownRuns
from tests.browser.looks import requests_of
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid
from tests.mlflow_server import Server

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]

BENCHMARKS = ("CUB", "SUN", "AWA2")
WAIT_S = 90


def leave_a_grid(store: TrackingStore, folder: Path) -> tuple[str, list[str]]:
    """A grid of two variants on three benchmarks as a launch leaves it: id of its parent, and names of the children."""
    for name in BENCHMARKS:
        write_data(folder / "data", name=name)
    file = write_grid(folder, "benchmarks: [cub, sun, awa2]\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n")
    parent = store.create_parent("ablation grid", {"mgmrn.kind": "ablation"})
    cells = cells_of(file, folder / "data")
    run_ids = [run_in(store, parent, one, 0.5) for cell in cells for one in (cell.tune, cell.final(DECIDED))]
    runs = [store.get(run_id) for run_id in run_ids]
    planned = plan_cells(cells, KnownRuns(reversed(runs), store.experiment_id))
    log_grid(store, parent, planned, comparisons(make_grid(file), planned))
    store.finish(parent, "FINISHED", "finished")
    return parent, [run.name for run in runs]


def open_at(browser: Any, url: str, *texts: str) -> None:
    """Open a view and wait until it shows some texts."""
    browser.set_window_size(1500, 1200)
    browser.get("about:blank")
    browser.get(url)
    wait_for(browser, *texts)


def wait_for(browser: Any, *texts: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def all_there(now: Any) -> bool:
        shown = now.find_element("css selector", "body").text
        return all(text in shown for text in texts)

    WebDriverWait(browser, WAIT_S).until(all_there, f"the page does not show {texts}")


def test_a_grid_in_the_ui(browser: Any, tmp_path: Path, tables: Path) -> None:
    """The parent unfolds into its children, its page has the benchmarks in one table, and its tables are artifacts."""
    database = f"sqlite:///{shutil.copy(tables, tmp_path / 'server.db')}"
    store = TrackingStore.connect(database, "mgmrn/ablation/grid")
    parent, children = leave_a_grid(store, tmp_path)
    figures, server = store.get(parent).metrics, Server(tmp_path)
    try:
        server.start()
        url = f"{server.uri}/#/experiments/{store.experiment_id}/runs"
        open_at(browser, url, "ablation grid", f"{1 + len(children)} matching runs")
        browser.find_element("xpath", "//*[@role='gridcell'][.//*[text()='ablation grid']]//button").click()
        wait_for(browser, *children)
        open_at(browser, f"{url}/{parent}", "ablation grid", "grid/scored", "base (base)")
        rows = "[...one.rows].map(row => [...row.cells].map(cell => cell.innerText))"
        tables_shown = browser.execute_script(f"return [...document.querySelectorAll('table')].map(one => {rows})")
        (described, *_) = [table for table in tables_shown if table[0] == ["variant", *BENCHMARKS]]
        assert described[1:] == [
            [title, *(f"{100 * figures[f'{name}/{variant}/gzsl_h/mean']:.1f} (n = 1)" for name in BENCHMARKS)]
            for title, variant in (("base (base)", "base"), ("smooth", "smooth"))
        ]
        browser.get_log("performance")
        open_at(browser, f"{url}/{parent}/artifacts", "comparison.csv", "comparison.json")
        assert {urlsplit(one).hostname for one in requests_of(browser) if one.startswith("http")} == {LOOPBACK}
    finally:
        server.kill()
