"""The pages of ablations and explanations in a browser: they load nothing and can be read on a phone, in the dark and on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgmrn.checkpoint import load_model
from mgmrn.data.pictures import prepared_file
from pipeline.analysis.page.page import render_page
from pipeline.models.explain import Explanations, render
from pipeline.models.reasons import ALL_LEVELS, ALL_PARTS, Subject, explain
from tests.browser.looks import check_can_be_read, check_fits_a_phone, check_loads_nothing, check_prints_on_white
from tests.browser.made_up import GAINS, made_up, many
from tests.exported import CONFIG, write_model, write_pictures

pytestmark = pytest.mark.browser

FEW, MANY = render_page(made_up()), render_page(many())

COLUMN = """
    const table = document.querySelector("table[data-metric=ausuc]");
    return [...table.tBodies[0].rows].map((row) => row.cells[arguments[0]].dataset.value ?? row.cells[0].textContent);
"""
HEADER = "table[data-metric=ausuc] th[data-column='{}']"

OPEN_ALL = "for (const one of document.querySelectorAll('details')) one.open = true;"


def column_of(browser: Any, column: int) -> list[str]:
    return browser.execute_script(COLUMN, column)


def button_of(browser: Any, column: int) -> Any:
    return browser.find_element("css selector", f"{HEADER.format(column)} button")


def sorting_of(browser: Any, column: int) -> str:
    return browser.find_element("css selector", HEADER.format(column)).get_attribute("aria-sort")


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of explanations with markup in the names of pictures, a known class and a table of pointing."""
    folder = tmp_path_factory.mktemp("explained")
    model = load_model(write_model(folder / "model.pt"))
    paths = write_pictures(folder / "pictures")
    images = torch.stack([prepared_file(path, CONFIG.benchmark.images) for path in paths])
    subjects = [Subject(path, f"<i>{path.name}</i>", "wren") for path in paths]
    content = Explanations(
        model="syn.mgmrn.s0.1234abcd",
        benchmark="X",
        gamma=model.gamma,
        classes={"wren": explain(model, subjects, images)[1]},
        pointing={ALL_LEVELS: {ALL_PARTS: {"accuracy": 0.4, "chance": 0.1, "maps": 120}}},
        made_at="2026-11-24T22:00:00+00:00",
        commit="093db53",
        page=folder / "index.html",
        sheets=(),
        run_id=None,
    )
    return render(content)


@pytest.mark.parametrize("text", [FEW, MANY], ids=["few", "many"])
def test_a_report_loads_nothing_and_fits_a_phone(opened: Any, text: str) -> None:
    browser = opened(text)
    browser.execute_script(OPEN_ALL)
    check_loads_nothing(browser)
    check_fits_a_phone(browser)
    box = "const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth"
    assert browser.execute_script(box), "tables scroll by themselves"
    size = "return Math.min(...[...document.querySelectorAll('svg')].map((one) => one.getScreenCTM().a * 12))"
    assert browser.execute_script(size) >= 9, "letters of pictures are large enough"


def test_explanations_load_nothing_and_can_be_read_on_a_phone_in_the_dark_and_on_paper(
    opened: Any, explained: str
) -> None:
    browser = opened(explained)
    check_loads_nothing(browser)
    widths = browser.execute_script("return [...document.images].map((one) => one.complete && one.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * 7) and set(widths) == {128}
    assert browser.execute_script("return [...document.images].filter((one) => !one.alt).length") == 0
    assert browser.find_elements("css selector", "i:not(.meter i)") == []
    check_can_be_read(browser)
    check_prints_on_white(browser)
    check_fits_a_phone(opened(explained))


def test_a_click_sorts_numbers_the_largest_first_then_the_smallest_then_as_before(opened: Any) -> None:
    browser = opened(FEW)
    before = column_of(browser, 4)
    browser.find_element("css selector", HEADER.format(4)).click()
    assert sorting_of(browser, 4) == "descending"
    descending = column_of(browser, 4)
    # Rows without a score stay below in both directions.
    assert descending[-1] == "" and descending[:-1] == sorted(filter(None, before), key=float, reverse=True)
    button_of(browser, 4).click()
    assert sorting_of(browser, 4) == "ascending"
    assert column_of(browser, 4) == [*reversed(descending[:-1]), ""]
    button_of(browser, 4).click()
    assert sorting_of(browser, 4) == "none" and column_of(browser, 4) == before


@pytest.mark.parametrize("key", ["\ue007", " "], ids=["enter", "space"])
def test_keys_sort_too(opened: Any, key: str) -> None:
    browser = opened(FEW)
    button_of(browser, 1).click()
    button_of(browser, 0).send_keys(key)
    assert (sorting_of(browser, 0), sorting_of(browser, 1)) == ("ascending", "none")
    assert column_of(browser, 0) == sorted(GAINS)


def test_a_number_of_runs_opens_the_list_of_runs(opened: Any) -> None:
    browser = opened(MANY)
    runs = browser.find_element("css selector", "table.runs")
    assert not runs.is_displayed()
    browser.find_element("css selector", "table[data-metric=ausuc] a.count").click()
    assert runs.is_displayed()


def test_paper_shows_everything_on_white_and_the_screen_can_be_read(opened: Any) -> None:
    check_can_be_read(opened(MANY))
    browser = opened(FEW)
    check_prints_on_white(browser)
    hidden = """
        const shown = { contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true };
        return [...document.querySelectorAll("main *:not(script, title, th button)")]
          .filter((one) => !one.checkVisibility(shown)).map((one) => one.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(hidden) == []
    scrolled = "return [...document.querySelectorAll('.scroll')].map((one) => getComputedStyle(one).overflowX)"
    assert set(browser.execute_script(scrolled)) == {"visible"}


def test_printing_opens_what_is_folded_and_folds_it_again(opened: Any) -> None:
    browser = opened(FEW)
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(folded)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 and browser.execute_script(folded) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) == before
