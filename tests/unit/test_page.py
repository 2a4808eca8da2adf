"""The page of an ablation: its figures are those of the comparison, and no name can break it."""

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from pipeline.analysis.comparison import Comparison
from pipeline.analysis.page.charts import bar_chart, level_chart
from pipeline.analysis.page.page import PageContent, render_page, top_changes
from pipeline.analysis.runs import LOCALISED
from tests.browser.made_up import made_up, with_scores_in
from tests.pages import Node, parsed

CONTENT = made_up()
CELLS = CONTENT.primary.cells
TEXT = render_page(CONTENT)
PAGE = parsed(TEXT)
UI = "http://127.0.0.1:5000"


def page_of(content: PageContent) -> Node:
    return parsed(render_page(content))


def row_of(page: Node, metric: str, variant: str) -> list[Node]:
    """A row's cells: three per benchmark."""
    table = page.one("table", data_metric=metric)
    row = next(row for row in table.one("tbody").all("tr") if row.one("th").text == variant)
    return list(row.all("td"))


def test_the_answer_names_every_variant_under_its_verdict_and_the_rule() -> None:
    answer = PAGE.one("dl")
    found = {block.one("dt").text: [line.text for line in block.all("dd")] for block in answer.all("div")}
    assert found["CUB"] == ["▲ better wider", "▼ worse no_mrm, one_level", "○ no difference shown broken, deeper"]
    assert found["AWA2"] == [
        "▼ worse no_mrm, one_level",
        "○ no difference shown deeper",
        "? insufficient seeds wider",
        "× no score broken",
    ]
    text = PAGE.text
    assert "AUSUC (area under the seen–unseen curve), measured on test classes, compared with full" in text
    assert "1 better, 4 worse, 3 no difference shown, 1 insufficient seeds, 1 no score" in text
    assert "from 3 seeds in common with full on, where p < 0.05" in text and "by Holm (differences: 9)" in text


def test_cells_that_failed_are_stale_or_were_not_run_are_shown_with_their_reason() -> None:
    assert "1 stale (seed 1: the code changed since)" in row_of(PAGE, "ausuc", "no_mrm")[0].text
    cell = row_of(PAGE, "ausuc", "one_level")[3]
    assert "1 failed (seed 0: out of memory at step 120)" in cell.text
    assert "4 missing (seeds 0, 1, 2, 3: no folder DATA/AWA2)" in row_of(PAGE, "gzsl_h", "broken")[3].text
    runs = PAGE.one("table", class_="sortable runs").one("tbody")
    assert Counter(row.one("b").text for row in runs.all("tr")) == {
        **{"finished": 40, "stale": 1, "failed": 1, "benchmark missing": 4, "not run yet": 1, "running": 1}
    }
    row = PAGE.one("tr", id=cell.one("a").attributes["href"].removeprefix("#"))
    assert (row.one("th").text, row.one("td").text) == ("one_level", "AWA2"), "a number of runs leads to them"


def test_a_page_without_scores_one_with_the_base_alone_and_one_of_validation_classes() -> None:
    page = page_of(with_scores_in(CONTENT, "failed", "no space left"))
    assert "10 no score" in page.text
    assert not [id for id in ("cost", "curves", "levels") if list(page.all("h2", id=id))]
    assert page.text.count("4 failed (seeds 0, 1, 2, 3: no space left)") == 3 * len(CONTENT.primary.entries)
    page = page_of(made_up({"full": 0.0}))
    assert "compared with full : nothing to compare" in page.text and "no variant but the base" in page.text
    comparisons = tuple(replace(one, split="tune") for one in CONTENT.comparisons)
    assert "validation classes, not a test result" in page_of(replace(CONTENT, comparisons=comparisons)).text


def test_runs_link_to_web_addresses_alone() -> None:
    content = made_up({"full": 0.0}, ("CUB",))
    run_id = content.primary.cells["run_id"].iloc[0]
    for address in (None, "javascript:alert(1)//", "sqlite:///mlflow.db"):
        page = page_of(replace(content, ui=address))
        assert all(link.attributes["href"].startswith("#") for link in page.all("a")) and run_id in page.text
    page = page_of(replace(content, ui=f"{UI}/"))
    assert page.one("a", href=f"{UI}/#/experiments/7/runs/{run_id}").text == run_id


def test_published_numbers_class_changes_and_config_differences_are_shown() -> None:
    block = PAGE.one("section", class_="published")
    assert "Published by their authors, not rerun here" in block.text
    assert [cell.text for cell in block.one("tbody").all("td")][-4:] == ["72.1", "–", "–", "67.2"]
    configs = {"no_mrm": [("model.refinement", "adjacent", "none")], "wider": []}
    page = page_of(replace(CONTENT, configs=configs, published=CONTENT.published[:0]))
    bodies = page.one("table", class_="configs").all("tbody")
    assert [body.text for body in bodies] == ["no_mrm model.refinement adjacent none", "wider nothing"]
    assert "APN" not in page.text
    rows = [("CUB", "no_mrm", f"c{number:02d}", "seen", (number - 12) / 100) for number in range(30)]
    classes = pd.DataFrame(rows, columns=CONTENT.classes.columns)
    top = top_changes(classes)
    assert [one["class"] for one in top["gains"]] == [f"c{number}" for number in range(29, 19, -1)]
    assert [one["class"] for one in top["losses"]] == [f"c{number:02d}" for number in range(10)]
    assert top_changes(classes[12:13]) == {"gains": [], "losses": []}


def test_localisation_is_shown_where_it_was_measured() -> None:
    labels = ("Localisation", "Localisation by part")
    together, by_part = (PAGE.one("div", aria_label=label).one("table") for label in labels)
    assert [cell.text for cell in together.all("th")][-4:] == list(LOCALISED.values())
    row = [cell.text for cell in next(together.one("tbody").all("tr")).all("td")]
    assert row[2:6] == ["test_unseen", "all levels", "all parts", "37.7 ± 1.2 (4)"]
    assert {list(row.all("td"))[4].text for row in by_part.one("tbody").all("tr")} == {"beak"}
    assert "Localisation" not in page_of(replace(CONTENT, localisation=CONTENT.localisation[:0])).text


def test_nothing_is_loaded_and_no_script_but_the_own_one_may_run() -> None:
    assert not [word for word in ("http://", "https://", "//cdn", "@import", "url(") if word in TEXT]
    nodes = [node for tag in ("script", "link", "img", "iframe", "object", "a", "use") for node in PAGE.all(tag)]
    addresses = [node.attributes.get(name, "") for node in nodes for name in ("src", "href", "data")]
    assert {address for address in addresses if not address.startswith("#")} == {"", "data:,"}
    policy = PAGE.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    (script,) = PAGE.all("script")
    own = base64.b64encode(hashlib.sha256("".join(map(str, script.children)).encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in policy and "default-src 'none'" in policy


HOSTILE = """</script></style></title></svg>"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}&amp;"""


def _hostile_content() -> PageContent:
    content = made_up({HOSTILE: 0.0, f"{HOSTILE}2": 0.03}, (HOSTILE,))
    texts = dict.fromkeys(("reason", "run_id", "experiment_id"), HOSTILE)
    primary = replace(content.primary, cells=content.primary.cells.assign(state="failed", **texts))
    return replace(
        content,
        **dict.fromkeys(("title", "question", "command", "made_at", "commit"), HOSTILE),
        comparisons=(primary, *content.comparisons[1:]),
        classes=content.classes[:1].assign(**{"class": HOSTILE}),
        configs={HOSTILE: [(HOSTILE, HOSTILE, HOSTILE)]},
        published=content.published.assign(method=HOSTILE, source=HOSTILE),
        ui=f"{UI}/{HOSTILE}",
    )


def test_names_are_text_and_nothing_else() -> None:
    page = page_of(_hostile_content())
    assert len(list(page.all("script"))) == 1 and not list(page.all("img"))
    assert page.one("h1").text == page.one("title").text == page.one("svg").one("title").text[: len(HOSTILE)] == HOSTILE
    tags = ("svg", "td", "th", "tr", "a", "p", "section", "h2", "title")
    assert not [node for tag in tags for node in page.all(tag) if "onerror" in node.attributes]


def test_bars_reach_as_far_as_the_differences_and_intervals() -> None:
    rows = [
        ("full", math.nan, math.nan, math.nan, 0, "base"),
        ("up", 0.02, 0.01, 0.04, 3, "better"),
        ("down", -0.02, -0.02, -0.02, 3, "worse"),
        ("gone", math.nan, math.nan, math.nan, 0, "no score"),
    ]
    entries = pd.DataFrame(rows, columns=["variant", "difference", "low", "high", "pairs", "verdict"])
    comparison = Comparison("ausuc", "final", "full", CELLS, entries.assign(benchmark="CUB"))
    root = ElementTree.fromstring(str(bar_chart(comparison, "CUB")))
    labels = {text.text: float(text.attrib["x"]) for text in root.iter("text")}
    assert {"▲ +2.0", "▼ −2.0", "× no score"} <= labels.keys()
    up, down = ([float(bar.attrib[key]) for key in ("x", "width")] for bar in root.iter("rect"))
    assert (up[0], sum(up)) == pytest.approx((labels["0"], labels["+2"]), abs=0.2)
    assert (down[0], sum(down)) == pytest.approx((labels["−2"], labels["0"]), abs=0.2)
    line = next(line.attrib for line in root.iter("line") if line.attrib["class"] == "interval")
    middle = (labels["0"] + labels["+2"]) / 2
    assert (float(line["x1"]), float(line["x2"])) == pytest.approx((middle, labels["+4"]), abs=0.2)


def test_levels_stand_at_their_means_and_their_sum_beside_what_it_is_worth() -> None:
    root = ElementTree.fromstring(str(level_chart(CONTENT.primary, "CUB")))
    marks = [mark for mark in root.iter("g") if "transform" in mark.attrib]
    places = {mark.findtext("title"): float(re.findall(r"[\d.]+", mark.attrib["transform"])[0]) for mark in marks}
    ticks = {float(text.text): float(text.attrib["x"]) for text in root.iter("text") if str(text.text).isdigit()}
    (low, start), *_, (high, end) = sorted(ticks.items())
    means = 100 * CELLS[CELLS["benchmark"] == "CUB"].groupby("variant").mean(numeric_only=True)
    full, alone = means.loc["full"], means.loc["one_level"]
    for name, value in (("c4", full["ausuc/c4"]), ("c5", full["ausuc/c5"]), ("sum", full["ausuc"])):
        expected = start + (value - low) / (high - low) * (end - start)
        assert places[f"full: {name} {value:.1f} %"] == pytest.approx(expected, abs=0.3)
    assert sum(str(name).startswith("one_level: ") for name in places) == 2
    gains = (full["ausuc"] - (full["ausuc/c4"] + full["ausuc/c5"]) / 2, alone["ausuc"] - alone["ausuc/c5"])
    assert {f"+{gain:.1f}" for gain in gains} <= {text.text for text in root.iter("text")}
    assert level_chart(with_scores_in(CONTENT, "failed", "").primary, "CUB") is None
