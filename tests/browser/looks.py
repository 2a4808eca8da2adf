"""Checks of every page: it loads no file, fits a phone, can be read in the light and in the dark, and prints on white."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTRAST = Path(__file__).with_name("contrast.js").read_text()


def requests_of(browser: Any) -> list[str]:
    """Addresses that the browser requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


def check_loads_nothing(browser: Any) -> None:
    """Check that the console is empty and that the page itself was the only request."""
    assert browser.get_log("browser") == []
    requested = requests_of(browser)
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
