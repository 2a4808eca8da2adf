"""The page of explanations in a browser: it loads nothing, shows its pictures, and can be read on a phone, in the dark and on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgmrn.checkpoint import load_model
from mgmrn.data.pictures import prepared_file
from pipeline.models.explain_page import ClassOfPictures, Content, render
from pipeline.models.reasons import ALL_LEVELS, ALL_PARTS, Pointing, Subject, explain
from tests.browser.looks import CONTRAST, requests_of
from tests.exported import CONFIG, write_model, write_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a name that is markup, a known class and a table of pointing."""
    folder = tmp_path_factory.mktemp("explained")
    model = load_model(write_model(folder / "model.pt"))
    paths = write_pictures(folder / "pictures")
    images = torch.stack([prepared_file(path, CONFIG.benchmark.images) for path in paths])
    subjects = [Subject(path, f"<i>{path.name}</i>", "wren") for path in paths]
    content = Content(
        model="syn.mgmrn.s0.1234abcd",
        benchmark="X",
        gamma=model.gamma,
        classes=(ClassOfPictures("wren", tuple(explain(model, subjects, images)[1])),),
        pointing={ALL_LEVELS: {ALL_PARTS: Pointing(0.4, 0.1, 120)}},
        made_at="2026-11-24T22:00:00+00:00",
        commit="093db53",
    )
    return render(content)


def test_nothing_is_loaded_nothing_complained_of_and_every_picture_is_there(opened: Any, text: str) -> None:
    browser = opened(text)
    assert browser.get_log("browser") == []
    assert [url for url in requests_of(browser) if not url.startswith(("file:", "data:"))] == []
    widths = browser.execute_script("return [...document.images].map((one) => one.complete && one.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * 7) and set(widths) == {128}
    unnamed = "return [...document.images].filter((one) => !one.alt).length"
    assert browser.execute_script(unnamed) == 0
    assert browser.find_elements("css selector", "i:not(.meter i)") == []


def test_a_phone_shows_it_without_scrolling_sideways(opened: Any, text: str) -> None:
    browser = opened(text)
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]


def test_words_can_be_read_in_the_light_and_in_the_dark(opened: Any, text: str) -> None:
    browser = opened(text)
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert {pair: ratio for pair, ratio in browser.execute_script(CONTRAST).items() if ratio < 4.5} == {}


def test_paper_is_white_even_where_the_screen_is_dark(opened: Any, text: str) -> None:
    browser = opened(text)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"
