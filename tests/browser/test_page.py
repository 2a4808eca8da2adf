"""The pages of ablations and explanations in a browser: they load nothing and can be read on a phone, in the dark and on paper."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.page.page import render_page
from pipeline.cli.app import main
from tests.browser.made_up import GAINS, made_up, many
from tests.exported import write_model, write_pictures

pytestmark = pytest.mark.browser

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
FEW, MANY = render_page(made_up()), render_page(many())

COLUMN = """
    const table = document.querySelector("table[data-metric=ausuc]");
    return [...table.tBodies[0].rows].map((row) => row.cells[arguments[0]].dataset.value ?? row.cells[0].textContent);
"""
OPEN_ALL = "for (const one of document.querySelectorAll('details')) one.open = true;"


def check_loads_nothing(browser: Any) -> None:
    """Check that the console is empty and that the page itself was the only request."""
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    requested = [one["request"]["url"] for one in sent]
    assert requested and [url for url in requested if not url.startswith(("file:", "data:"))] == []


def check_fits_a_phone(browser: Any) -> None:
    """Check that a phone shows the page without scrolling sideways."""
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]


def check_can_be_read(browser: Any) -> None:
    """Check the contrast of all text in both colour schemes."""
    pairs = []
    for scheme in ("light", "dark"):
        prefer(browser, scheme)
        pairs.append(browser.execute_script(CONTRAST))
        assert {pair: ratio for pair, ratio in pairs[-1].items() if ratio < 4.5} == {}
    assert pairs[0].keys() != pairs[1].keys()


def check_prints_on_white(browser: Any) -> None:
    """Check the background on paper where the screen is dark."""
    prefer(browser, "dark", media="print")
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"


def prefer(browser: Any, scheme: str, media: str = "") -> None:
    """Emulate a colour scheme and a medium."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column_of(browser: Any, column: int) -> list[str]:
    return browser.execute_script(COLUMN, column)


def header_of(browser: Any, column: int) -> tuple[Any, Any, str]:
    """Header of a column, its button, and the present order."""
    header = browser.find_element("css selector", f"table[data-metric=ausuc] th[data-column='{column}']")
    return header, header.find_element("css selector", "button"), header.get_attribute("aria-sort")


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of explanations with markup in the names of pictures."""
    folder = tmp_path_factory.mktemp("explained")
    pictures = [picture.rename(folder / f"<i>{picture.name}") for picture in write_pictures(folder / "pictures")]
    images = [word for picture in pictures for word in ("--image", str(picture))]
    places = ("--data-root", str(folder), "--out", str(folder / "page"))
    assert main(["explain", str(write_model(folder / "model.pt")), *images, *places]) == 0
    return (folder / "page" / "index.html").read_text()


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


def test_explanations_load_nothing_and_can_be_read_in_the_dark_and_on_paper(opened: Any, explained: str) -> None:
    browser = opened(explained)
    check_loads_nothing(browser)
    widths = browser.execute_script("return [...document.images].map((one) => one.complete && one.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * 7) and set(widths) == {128}
    assert browser.execute_script("return [...document.images].filter((one) => !one.alt).length") == 0
    assert browser.find_elements("css selector", "i:not(.meter i)") == []
    check_can_be_read(browser)
    check_prints_on_white(browser)
    check_fits_a_phone(opened(explained))


def test_clicks_and_keys_sort_down_then_up_then_as_before(opened: Any) -> None:
    browser = opened(FEW)
    before = column_of(browser, 4)
    header, button, _ = header_of(browser, 4)
    header.click()
    descending = column_of(browser, 4)
    # Rows without a score stay below in both directions.
    assert descending[-1] == "" and descending[:-1] == sorted(filter(None, before), key=float, reverse=True)
    for press, order, values in (
        (lambda: None, "descending", descending),
        (button.click, "ascending", [*reversed(descending[:-1]), ""]),
        (button.click, "none", before),
    ):
        press()
        assert (header_of(browser, 4)[2], column_of(browser, 4)) == (order, values)
    for key in ("\ue007", " "):  # Enter and space.
        header_of(browser, 1)[1].click()
        header_of(browser, 0)[1].send_keys(key)
        assert (header_of(browser, 0)[2], header_of(browser, 1)[2]) == ("ascending", "none")
        assert column_of(browser, 0) == sorted(GAINS)


def test_paper_shows_everything_on_white_and_the_screen_can_be_read(opened: Any) -> None:
    check_can_be_read(opened(MANY))
    browser = opened(FEW)
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(folded)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 and browser.execute_script(folded) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) == before
    check_prints_on_white(browser)
    hidden = """
        const shown = { contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true };
        return [...document.querySelectorAll("main *:not(script, title, th button)")]
          .filter((one) => !one.checkVisibility(shown)).map((one) => one.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(hidden) == []
    scrolled = "return [...document.querySelectorAll('.scroll')].map((one) => getComputedStyle(one).overflowX)"
    assert set(browser.execute_script(scrolled)) == {"visible"}


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Callable[[str], Any]:
    """Opens a page in a wide light window and returns the browser, with empty logs."""

    def open_page(text: str) -> Any:
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
        browser.set_window_size(1400, 1000)
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(file.as_uri())
        return browser

    return open_page
