"""The page of explanations in a browser: it loads nothing, shows its pictures, and can be read on a phone, in the dark and on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgmrn.checkpoint import load_model
from mgmrn.data.pictures import prepared_file
from pipeline.models.explain_page import Explanations, render
from pipeline.models.reasons import ALL_LEVELS, ALL_PARTS, Subject, explain
from tests.browser.looks import check_can_be_read, check_fits_a_phone, check_loads_nothing, check_prints_on_white
from tests.exported import CONFIG, write_model, write_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with markup in the names of pictures, a known class and a table of pointing."""
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


def test_the_page_loads_nothing_and_shows_every_picture(opened: Any, text: str) -> None:
    browser = opened(text)
    check_loads_nothing(browser)
    widths = browser.execute_script("return [...document.images].map((one) => one.complete && one.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * 7) and set(widths) == {128}
    unnamed = "return [...document.images].filter((one) => !one.alt).length"
    assert browser.execute_script(unnamed) == 0
    assert browser.find_elements("css selector", "i:not(.meter i)") == []


def test_the_page_can_be_read_on_a_phone_in_the_dark_and_on_paper(opened: Any, text: str) -> None:
    browser = opened(text)
    check_can_be_read(browser)
    check_prints_on_white(browser)
    check_fits_a_phone(opened(text))
