"""The page of an ablation: what it says, that it says what the comparison says, and that names cannot break it."""

from __future__ import annotations

import base64
import hashlib
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.comparison import Comparison
from pipeline.analysis.page import charts, svg
from pipeline.analysis.page.charts import bar_chart, cost_chart, costs, curve_panels, simplified
from pipeline.analysis.page.page import PageContent, probability, render_page, top_changes
from tests.browser.made_up import GAINS, made_up, many, with_scores_in
from tests.pages import Node, parsed

CONTENT = made_up()
CELLS = CONTENT.primary.cells
MANY = many()
UI = "http://127.0.0.1:5000"


def page_of(content: PageContent = CONTENT) -> Node:
    return parsed(render_page(content))


def row_of(page: Node, metric: str, variant: str) -> list[Node]:
    """A row's cells: three per benchmark."""
    table = page.one("table", data_metric=metric)
    row = next(row for row in table.one("tbody").all("tr") if row.one("th").text == variant)
    return list(row.all("td"))


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comparison", CONTENT.comparisons, ids=lambda one: one.metric)
def test_every_number_of_the_table_is_that_of_the_comparison(comparison: Comparison) -> None:
    page = page_of()
    for variant, entries in comparison.rows():
        cells = row_of(page, comparison.metric, variant)
        assert len(cells) == 3 * len(comparison.benchmarks)
        for position, entry in enumerate(entries):
            score, difference, verdict = cells[3 * position : 3 * position + 3]
            assert entry.verdict in verdict.text
            assert verdict.attributes["data-value"] == ("" if math.isnan(entry.p_holm) else str(entry.p_holm))
            if not entry.n:
                assert score.attributes["data-value"] == "" and "no score" in score.text
            else:
                assert float(score.attributes["data-value"]) == entry.mean
                assert f"{100 * entry.mean:.1f} ± {100 * entry.std:.1f} ({entry.n})" in score.text
            if not entry.pairs:
                assert difference.attributes["data-value"] == ""
            else:
                assert float(difference.attributes["data-value"]) == entry.difference
                shown = (
                    f"{100 * value:+z.1f}".replace("-", "−") for value in (entry.difference, entry.low, entry.high)
                )
                assert difference.text.startswith("{} [{}, {}]".format(*shown))


def test_the_answer_names_every_variant_under_its_verdict() -> None:
    answer = page_of().one("dl")
    found = {block.one("dt").text: [line.text for line in block.all("dd")] for block in answer.all("div")}
    assert found["CUB"] == ["▲ better wider", "▼ worse no_mrm, one_level", "○ no difference shown broken, deeper"]
    assert found["AWA2"] == [
        "▼ worse no_mrm, one_level",
        "○ no difference shown deeper",
        "? insufficient seeds wider",
        "× no score broken",
    ]


def test_the_answer_says_how_many_and_by_which_rule() -> None:
    text = page_of().text
    assert "AUSUC (area under the seen–unseen curve), measured on test classes, compared with full" in text
    assert "1 better, 4 worse, 3 no difference shown, 1 insufficient seeds, 1 no score" in text
    assert "corrected by Holm (differences: 9)" in text


def test_cells_that_failed_are_stale_or_were_not_run_are_shown_with_their_reason() -> None:
    page = page_of()
    assert "1 stale (seed 1: the code changed since)" in row_of(page, "ausuc", "no_mrm")[0].text
    assert "1 failed (seed 0: out of memory at step 120)" in row_of(page, "ausuc", "one_level")[3].text
    assert "4 missing (seeds 0, 1, 2, 3: no folder DATA/AWA2)" in row_of(page, "gzsl_h", "broken")[3].text
    runs = page.one("table", class_="sortable runs").one("tbody")
    states = [row.one("b").text for row in runs.all("tr")]
    assert len(states) == len(CELLS)
    assert {state: states.count(state) for state in set(states)} == {
        "finished": 40,
        "stale": 1,
        "failed": 1,
        "benchmark missing": 4,
        "not run yet": 1,
        "running": 1,
    }


def test_a_page_without_scores_one_with_the_base_alone_and_one_of_validation_classes() -> None:
    page = page_of(with_scores_in(CONTENT, "failed", "no space left"))
    assert "10 no score" in page.text
    assert not list(page.all("h2", id="cost")) and not list(page.all("h2", id="curves"))
    assert page.text.count("4 failed (seeds 0, 1, 2, 3: no space left)") == 3 * len(CONTENT.primary.entries)
    page = page_of(made_up({"full": 0.0}))
    assert "compared with full : nothing to compare" in page.text and "no variant but the base" in page.text
    comparisons = tuple(replace(one, split="tune") for one in CONTENT.comparisons)
    assert "validation classes, not a test result" in page_of(replace(CONTENT, comparisons=comparisons)).text


def test_a_number_of_runs_leads_to_them() -> None:
    page = page_of()
    link = row_of(page, "ausuc", "one_level")[3].one("a").attributes["href"]
    row = page.one("tr", id=link.removeprefix("#"))
    assert [cell.text for cell in row.all("th")] == ["one_level"] and next(row.all("td")).text == "AWA2"


def test_every_run_is_named_with_its_figures() -> None:
    rows = list(page_of().one("table", class_="sortable runs").one("tbody").all("tr"))
    for cell, row in zip(CELLS.to_dict("records"), rows, strict=True):
        shown = list(row.all("td"))
        assert shown[-1].text == cell["run_id"]
        for comparison, value in zip(CONTENT.comparisons, shown[3:], strict=False):
            figure = cell[comparison.metric]
            assert value.attributes["data-value"] == ("" if math.isnan(figure) else str(figure))


@pytest.mark.parametrize("address", [UI, f"{UI}/", None, "", "javascript:alert(1)//", "sqlite:///mlflow.db"])
def test_runs_link_to_web_addresses_alone(address: str | None) -> None:
    page = page_of(replace(CONTENT, ui=address))
    run_id = CELLS["run_id"].iloc[0]
    if address and address.startswith("http"):
        assert page.one("a", href=f"{UI}/#/experiments/7/runs/{run_id}").text == run_id
    else:
        assert all(link.attributes["href"].startswith("#") for link in page.all("a")) and run_id in page.text


def test_published_numbers_stand_apart_under_their_label() -> None:
    block = page_of().one("section", class_="published")
    assert "Published by their authors, not rerun here" in block.text
    assert [cell.text for cell in block.one("tbody").all("td")][-4:] == ["72.1", "–", "–", "67.2"]
    assert "APN" not in page_of(replace(CONTENT, published=CONTENT.published[:0])).text


def test_the_classes_that_change_most_are_listed_each_way() -> None:
    rows = [("CUB", "no_mrm", f"c{number:02d}", "seen", (number - 12) / 100) for number in range(30)]
    classes = pd.DataFrame(rows, columns=CONTENT.classes.columns)
    top = top_changes(classes, "no_mrm", "CUB")
    assert [one["class"] for one in top["gains"]] == [f"c{number}" for number in range(29, 19, -1)]
    assert [one["class"] for one in top["losses"]] == [f"c{number:02d}" for number in range(10)]
    assert top_changes(classes[12:13], "no_mrm", "CUB") == {"gains": [], "losses": []}


def test_config_differences_are_shown_and_their_absence_too() -> None:
    configs = {"no_mrm": [("model.refinement", "adjacent", "none")], "wider": []}
    table = page_of(replace(CONTENT, configs=configs)).one("table", class_="configs")
    assert [body.text for body in table.all("tbody")] == ["no_mrm model.refinement adjacent none", "wider nothing"]


# --- that it stands alone ---------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere() -> None:
    text = render_page(CONTENT)
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert "@import" not in text and "url(" not in text
    nodes = [
        node for tag in ("script", "link", "img", "iframe", "object", "a", "use") for node in parsed(text).all(tag)
    ]
    addresses = [node.attributes.get(name, "") for node in nodes for name in ("src", "href", "data")]
    assert {address for address in addresses if not address.startswith("#")} == {"", "data:,"}


def test_no_script_but_the_pages_own_may_run() -> None:
    page = page_of()
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    (script,) = page.all("script")
    own = base64.b64encode(hashlib.sha256("".join(map(str, script.children)).encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in policy and "default-src 'none'" in policy


HOSTILE = """</script></style></title></svg>"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}&amp;"""


def hostile_content() -> PageContent:
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
    page = page_of(hostile_content())
    assert len(list(page.all("script"))) == 1 and not list(page.all("img"))
    assert page.one("h1").text == page.one("title").text == HOSTILE
    for tag in ("dt", "dd", "caption", "figcaption", "summary", "code", "li"):
        for node in page.all(tag):
            assert "<script>" in node.text or HOSTILE[:8] not in node.text
    assert HOSTILE in page.one("svg").one("title").text
    tags = {"svg", "td", "th", "tr", "a", "p", "section", "h2", "title"}
    assert not [node for tag in tags for node in page.all(tag) if "onerror" in node.attributes]


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [CONTENT, MANY, hostile_content()], ids=["few", "many", "hostile"])
def test_charts_are_whole_drawings_with_a_title(content: PageContent) -> None:
    comparison, benchmark = content.primary, content.primary.benchmarks[0]
    drawn = [
        bar_chart(comparison, benchmark),
        cost_chart(comparison, benchmark, *costs(comparison, benchmark)),
        *(panel for _, panel in curve_panels(comparison, content.curves, benchmark)),
    ]
    for chart in drawn:
        root = ElementTree.fromstring(str(chart))
        assert root.tag == "svg" and root.attrib["role"] == "img" and "viewBox" in root.attrib
        assert root[0].tag == "title" and benchmark in (root[0].text or "")
        assert "nan" not in str(chart) and "inf" not in str(chart)


def test_bars_reach_as_far_as_the_differences_and_intervals() -> None:
    names = ["variant", "difference", "low", "high", "pairs", "verdict"]
    rows = [
        ("full", math.nan, math.nan, math.nan, 0, "base"),
        ("up", 0.02, 0.01, 0.04, 3, "better"),
        ("down", -0.02, -0.02, -0.02, 3, "worse"),
        ("gone", math.nan, math.nan, math.nan, 0, "no score"),
    ]
    entries = pd.DataFrame(rows, columns=names).assign(benchmark="CUB")
    root = ElementTree.fromstring(str(bar_chart(Comparison("ausuc", "final", "full", CELLS, entries), "CUB")))
    ticks = {text.text: float(text.attrib["x"]) for text in root.iter("text") if text.text in ("−2", "0", "+2", "+4")}
    up, down = root.iter("rect")
    assert float(up.attrib["x"]) == pytest.approx(ticks["0"], abs=0.2)
    assert float(up.attrib["x"]) + float(up.attrib["width"]) == pytest.approx(ticks["+2"], abs=0.2)
    assert float(down.attrib["x"]) == pytest.approx(ticks["−2"], abs=0.2)
    reach = [(float(line.attrib["x1"]), float(line.attrib["x2"])) for line in root.iter("line")
             if line.attrib["class"] == "interval" and line.attrib["y1"] == line.attrib["y2"]]  # fmt: skip
    assert reach[0] == pytest.approx(((ticks["0"] + ticks["+2"]) / 2, ticks["+4"]), abs=0.2)
    labels = [text.text for text in root.iter("text")]
    assert "▲ +2.0" in labels and "▼ −2.0" in labels and "× no score" in labels


def test_long_names_stand_above_their_bars_in_full_and_short_ones_beside_them() -> None:
    def places(content) -> dict[str | None, tuple[str, float]]:
        root = ElementTree.fromstring(str(bar_chart(content.primary, "CUB")))
        return {text.text: (text.attrib["text-anchor"], float(text.attrib["x"])) for text in root.iter("text")}

    variants = MANY.primary.variants
    assert {places(MANY)[name] for name in variants[1:]} == {("start", 0.0)}
    few = {places(CONTENT)[name] for name in list(GAINS)[1:]}
    assert len(few) == 1 and next(iter(few))[0] == "end"


def test_many_variants_are_numbered_in_the_cost_chart_and_few_are_named() -> None:
    page = page_of(MANY)
    assert [item.text for item in page.one("ol").all("li")] == list(MANY.primary.variants)
    chart = next(one for one in page.all("svg") if "against wall-clock time" in one.one("title").text)
    assert [label.text for label in chart.all("text", class_="name")] == [str(number) for number in range(1, 31)]
    few = cost_chart(CONTENT.primary, "CUB", *costs(CONTENT.primary, "CUB"))
    root = ElementTree.fromstring(str(few))
    assert {label.text for label in root.iter("text") if label.attrib["class"] == "name"} == set(GAINS)


def test_cost_is_gpu_time_where_all_runs_have_some() -> None:
    def with_gpu(times: dict[str, float]) -> Comparison:
        cells = CONTENT.primary.cells
        return replace(CONTENT.primary, cells=cells.assign(gpu_seconds=cells["variant"].map(times)))

    unit, every = costs(with_gpu(dict.fromkeys(GAINS, 60.0)), "CUB")
    assert unit == "GPU time" and set(every["seconds"]) == {60.0}
    unit, some = costs(with_gpu({"full": 60.0}), "CUB")
    assert unit == "wall-clock time" and some["seconds"].min() >= 300


def test_costs_far_apart_get_a_logarithmic_axis() -> None:
    unit, found = costs(CONTENT.primary, "CUB")
    apart = found.assign(seconds=[0.02, *found["seconds"][1:]])
    root = ElementTree.fromstring(str(cost_chart(CONTENT.primary, "CUB", unit, apart)))
    assert {"0.001", "1", "10"} & {text.text for text in root.iter("text")}


def test_points_chosen_by_gamma_are_marked_for_every_seed() -> None:
    panels = dict(curve_panels(CONTENT.primary, CONTENT.curves, "CUB"))
    assert list(panels) == list(GAINS)
    root = ElementTree.fromstring(str(panels["wider"]))
    assert len(list(root.iter("circle"))) == len(list(root.iter("rect"))) == 4
    assert sum(path.attrib["class"] == "curve own" for path in root.iter("path")) == 4
    assert not list(ElementTree.fromstring(str(panels["full"])).iter("rect"))
    assert "broken" not in dict(curve_panels(CONTENT.primary, CONTENT.curves, "AWA2"))


def test_a_straight_line_needs_its_ends_alone_and_stairs_all_their_corners() -> None:
    line = [(float(x), 2.0 * x) for x in range(100)]
    assert simplified(line) == [line[0], line[-1]]
    stairs = [(10.0 * (step // 2 + step % 2), 10.0 * (step // 2)) for step in range(20)]
    assert simplified(stairs) == stairs


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20), st.sampled_from([0, 0.1]))
def test_ticks_are_round_even_and_among_the_values(values: list[float], margin: float) -> None:
    axis = svg.linear(values, 0, 100, margin)
    assert axis.low <= min(values) and max(values) <= axis.high
    assert axis.low - 1e-6 <= axis.ticks[0] and axis.ticks[-1] <= axis.high + 1e-6
    gaps = [after - before for before, after in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert 1 <= len(gaps) <= 5 and max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    labels = [f"{tick:.{axis.decimals}f}" for tick in axis.ticks]
    assert len(set(labels)) == len(labels)


# --- words ------------------------------------------------------------------------------------------------------------


def test_numbers_as_they_are_written() -> None:
    assert charts.percent(0.54849) == "54.8"
    assert [charts.points(value) for value in (0.012, -0.012, -0.0001, 0.0)] == ["+1.2", "−1.2", "+0.0", "+0.0"]
    assert [probability(value) for value in (0.0312, 0.0009, 1.0)] == ["p = 0.031", "p < 0.001", "p = 1.000"]
    assert [charts.time(value) for value in (0.254, 45.2, 7800)] == ["0.25 s", "45 s", "2 h 10 min"]
