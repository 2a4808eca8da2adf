"""The page of an ablation in a browser: it sorts, loads nothing, and can be read on a phone, in the dark and on paper."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.analysis.page.page import render_page
from tests.browser.looks import CONTRAST, requests_of
from tests.browser.made_up import GAINS, made_up, many

pytestmark = pytest.mark.browser

CONTENT = made_up()
FEW, MANY = render_page(CONTENT), render_page(many())

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


@pytest.mark.parametrize("text", [FEW, MANY], ids=["few", "many"])
def test_nothing_is_loaded_and_nothing_complained_of(opened: Any, text: str) -> None:
    browser = opened(text)
    browser.execute_script(OPEN_ALL)
    assert browser.get_log("browser") == []
    asked = requests_of(browser)
    assert asked and [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_click_sorts_numbers_the_largest_first_then_the_smallest_then_as_before(opened: Any) -> None:
    browser = opened(FEW)
    before = column_of(browser, 4)
    browser.find_element("css selector", HEADER.format(4)).click()
    assert sorting_of(browser, 4) == "descending"
    descending = column_of(browser, 4)
    # What has no score stays below in both directions.
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


@pytest.mark.parametrize("text", [FEW, MANY], ids=["few", "many"])
def test_a_phone_scrolls_tables_and_not_the_page(opened: Any, text: str) -> None:
    browser = opened(text)
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.execute_script(OPEN_ALL)
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(widths) == [360, 360]
    box = "const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth"
    assert browser.execute_script(box)
    size = "return Math.min(...[...document.querySelectorAll('svg')].map((one) => one.getScreenCTM().a * 12))"
    assert browser.execute_script(size) >= 9


def test_words_can_be_read_in_the_light_and_in_the_dark(opened: Any) -> None:
    browser = opened(MANY)
    found = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        found.append(browser.execute_script(CONTRAST))
        assert {pair: ratio for pair, ratio in found[-1].items() if ratio < 4.5} == {}
    light, dark = found
    assert light.keys().isdisjoint(dark)


def test_paper_shows_everything_on_white_even_where_the_screen_is_dark(opened: Any) -> None:
    browser = opened(FEW)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    hidden = """
        const shown = { contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true };
        return [...document.querySelectorAll("main *:not(script, title, th button)")]
          .filter((one) => !one.checkVisibility(shown)).map((one) => one.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(hidden) == []
    scrolled = "return [...document.querySelectorAll('.scroll')].map((one) => getComputedStyle(one).overflowX)"
    assert set(browser.execute_script(scrolled)) == {"visible"}
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"


def test_printing_opens_what_is_folded_and_folds_it_again(opened: Any) -> None:
    browser = opened(FEW)
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(folded)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 and browser.execute_script(folded) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) == before
