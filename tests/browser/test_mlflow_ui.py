"""MLflow's UI by the addresses that `ui` prints: its tables and charts compare the variants of a grid without a click."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.ablation.plan import survey
from pipeline.ablation.results import comparisons, log_grid
from pipeline.analysis.runs import FIGURES
from pipeline.analysis.views import grid_views
from pipeline.ports import LOOPBACK, free_port
from pipeline.tracking.store import TrackingStore
from pipeline.tracking.ui import pages, serve
from tests.finished_grid import FinishedGrid
from tests.ray.command import wait_until

pytestmark = pytest.mark.browser

KNOWN_ERRORS = ("users/current", "gateway-proxy")
"""Requests for features of MLflow's server that are not there without accounts."""
COLUMN = """
    const cells = [...document.querySelectorAll(`.ag-row [col-id="${CSS.escape(arguments[0])}"]`)];
    const number = (cell) => Number(cell.closest(".ag-row").getAttribute("row-index"));
    return cells.sort((one, other) => number(one) - number(other)).map((cell) => cell.innerText);
"""
"""Texts of a column from above."""
CHARTS = "return [...document.querySelectorAll('.draggable-card-title, h4')].map((one) => one.innerText)"


@pytest.fixture(scope="module")
def addresses(finished_grid: FinishedGrid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the pages of a finished grid that a server shows."""
    grid = finished_grid.copied_to(tmp_path_factory.mktemp("ui"))
    surveyed = survey(grid.file, grid.where, TrackingStore.connect)
    store, planned = surveyed.store, surveyed.plan()
    store.describe("Which is better?", grid_views("final", "ausuc"))
    parent = store.create_parent("ablation grid", {"mgmrn.kind": "ablation"})
    log_grid(store, parent, planned, comparisons(surveyed.grid, planned))
    store.finish(parent, "FINISHED", "finished")
    server = serve(store.uri, port := free_port())
    try:
        yield pages(store, f"http://{LOOPBACK}:{port}", "grid")
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(browser: Any, addresses: dict[str, str]) -> Iterator[Any]:
    """The browser, to open pages in; at the end its console holds no error."""
    browser.set_window_size(1900, 1000)
    browser.get_log("browser")
    yield browser
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if not any(known in message for known in KNOWN_ERRORS)] == []


def column(page: Any, name: str, rows: int) -> list[str]:
    """Texts of a metric's column, which has so many rows."""
    wait_until(lambda: len(page.execute_script(COLUMN, f"metrics.`{name}`")) == rows, f"{name} is shown", seconds=90)
    return page.execute_script(COLUMN, f"metrics.`{name}`")


def test_the_table_of_variants_shows_means_deviations_and_differences(page: Any, addresses: dict[str, str]) -> None:
    page.get(addresses["variants"])
    means, deviations, differences = (column(page, f"{name}/ausuc", 3) for name in ("test", "std", "difference"))
    assert [text[:5] for text in means] == ["0.761", "0.653", "0.5"], "the best first"
    assert [text[:5] for text in deviations] == ["0.103", "0.100", "0.070"]
    assert [text[:5] for text in differences] == ["0.107", "-", "-0.10"], "to the base"


def test_charts_compare_the_variants_by_the_figures_of_the_test_images(page: Any, addresses: dict[str, str]) -> None:
    page.get(addresses["variants as charts"])
    wait_until(lambda: len(page.execute_script(CHARTS)) == len(FIGURES), "the charts are shown", seconds=90)
    assert set(page.execute_script(CHARTS)) == {f"test/{key}" for key in FIGURES}


def test_runs_of_all_seeds_are_grouped_by_variant(page: Any, addresses: dict[str, str]) -> None:
    page.get(addresses["runs of all seeds"])
    rows = column(page, "test/ausuc", 3 + 8)
    is_mean = [text.endswith("(average)") for text in rows]
    assert is_mean == [True, *[False] * 3, True, *[False] * 3, True, *[False] * 2]
