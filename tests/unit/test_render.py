"""Comparisons in every form: the numbers survive, names are no markup, nothing that failed or is missing is left out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields, replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgmrn.errors import UserError
from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.export import CSV_COLUMNS, as_csv, as_dict
from pipeline.analysis.published import LABEL, PUBLISHED, PublishedScore, published_on, read_published
from pipeline.analysis.render import as_latex, as_markdown, tables
from pipeline.analysis.scores import ScoreCard
from pipeline.analysis.table import Table, latex, latex_text, markdown, markdown_text
from pipeline.console import Console

AWKWARD = "no_mrm & 5% [*]"


def scored(variant: str, seed: int, score: float) -> ScoreCard:
    metrics = {"gzsl_h": score, "zsl_t1": score + 0.1}
    return ScoreCard("CUB", variant, seed, "cached", "", f"run-{variant[:2]}-{seed}", "7", metrics, 12.5, 3.25)


CARDS = [
    *(scored("full", seed, score) for seed, score in enumerate([0.40, 0.43, 0.41, 0.44])),
    *(scored(AWKWARD, seed, score) for seed, score in enumerate([0.30, 0.34, 0.31, 0.335])),
    scored("K=7", 0, 0.5),
    ScoreCard("CUB", "K=7", 1, "failed", "out of\nmemory"),
    ScoreCard("CUB", "K=7", 2, "missing", "no images"),
    ScoreCard("CUB", "K=7", 3, "missing", "no images"),
    ScoreCard("SUN", "full", 0, "failed", "killed"),
    ScoreCard("SUN", "K=7", 0, "cached", run_id="half", metrics={"ausuc": 0.2}),
]
COMPARISONS = [compare(CARDS, "full", metric, "final") for metric in ("zsl_t1", "gzsl_h")]
TROUBLES = [
    "1 failed",
    "2 missing",
    "seed 1: out of memory",
    "seeds 2, 3: no images",
    "seed 0: killed",
    "1 without score",
]
SCORE = PublishedScore(
    "A|PN", "NeurIPS 2020", "arXiv 2008.08290", "ResNet-101", "not recorded", "CUB", 72.1, None, None, 67.2
)


def on_a_terminal(comparisons: list[Comparison], published: tuple[PublishedScore, ...] = ()) -> str:
    out = io.StringIO()
    console = Console(out=out)
    for table in tables(comparisons, published):
        console.table(table.headers, table.rows, table.title)
        for note in table.notes:
            console.line(note)
    return out.getvalue()


FORMS = {
    "terminal": on_a_terminal,
    "markdown": lambda comparisons: as_markdown(comparisons).replace("\\", ""),
    "latex": as_latex,
    "csv": as_csv,
    "json": lambda comparisons: json.dumps(as_dict(comparisons)),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_failed_is_missing_or_was_never_planned_is_shown_with_its_reason(form: str) -> None:
    shown = FORMS[form](COMPARISONS)
    for trouble in [*TROUBLES, "no cell of the grid"]:
        assert shown.count(trouble) >= len(COMPARISONS), trouble


@pytest.mark.parametrize("form", FORMS)
def test_stale_scores_count_and_are_marked(form: str) -> None:
    cards = [replace(card, state="stale", reason="other code") if card.seed == 1 else card for card in CARDS[:8]]
    comparison = compare(cards, "full", "gzsl_h", "final")
    shown = FORMS[form]([comparison])
    assert "1 stale" in shown and "seed 1: other code" in shown
    assert comparison.entry(AWKWARD, "CUB").verdict == "worse"


def test_people_read_percent_with_one_decimal_n_and_the_difference_in_points() -> None:
    rows = {(row[0], row[1]): row[2:] for row in tables(COMPARISONS)[1].rows}
    assert rows["full", "CUB"] == ("42.0 ± 1.8", "4", "–", "–", "–", "–", "base", "–")
    mean, n, difference, interval, pairs, p, verdict, remarks = rows[AWKWARD, "CUB"]
    assert (mean, n, difference, pairs, p, verdict, remarks) == (
        "32.1 ± 1.9",
        "4",
        "-9.9",
        "4",
        "< 0.001",
        "worse",
        "–",
    )
    assert re.fullmatch(r"-\d+\.\d … -\d+\.\d", interval)
    assert rows["K=7", "CUB"][:5] == ("50.0", "1", "+10.0", "–", "1")
    assert rows["K=7", "SUN"][:2] == ("–", "0")
    assert "H on the final split in percent" in on_a_terminal(COMPARISONS)


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    cards = [scored(variant, seed, 0.4 - by) for variant, by in (("full", 0), ("x", 1e-5)) for seed in range(3)]
    assert tables([compare(cards, "full", "gzsl_h", "final")])[0].rows[1][4:6] == ("+0.0", "+0.0 … +0.0")


def test_csv_holds_the_numbers_in_full() -> None:
    frame = pd.read_csv(io.StringIO(as_csv(COMPARISONS)), keep_default_na=False, na_values=[""])
    assert tuple(frame.columns) == CSV_COLUMNS
    entries = [(comparison, entry) for comparison in COMPARISONS for entry in comparison.entries]
    assert len(frame) == len(entries) == 2 * 3 * 2
    for (comparison, entry), (_, line) in zip(entries, frame.iterrows(), strict=True):
        named = (line["variant"], line["benchmark"], line["metric"], line["verdict"], line["split"], line["base"])
        assert named == (entry.variant, entry.benchmark, comparison.metric, entry.verdict, "final", "full")
        summary, difference = entry.summary, entry.difference
        expected = {
            "mean": summary and summary.mean,
            "std": summary and summary.std,
            "n": summary.n if summary else 0,
            "difference": difference and difference.mean,
            "low": difference and difference.low,
            "high": difference and difference.high,
            "pairs": difference.n if difference else 0,
            "p_holm": entry.p_holm,
        }
        for name, value in expected.items():
            assert pd.isna(line[name]) if value is None else line[name] == value, name
    k7 = frame[(frame["variant"] == "K=7") & (frame["benchmark"] == "CUB")].iloc[0]
    assert (k7["run_ids"], k7["states"]) == ("run-K=-0", "1 failed, 2 missing")
    assert frame.iloc[0]["run_ids"].split() == [f"run-fu-{seed}" for seed in range(4)]


def test_json_holds_every_field_of_every_card() -> None:
    found = json.loads(json.dumps(as_dict(COMPARISONS), allow_nan=False))["comparisons"]
    assert [(one["metric"], one["symbol"], one["split"], one["base"]) for one in found] == [
        ("zsl_t1", "T1", "final", "full"),
        ("gzsl_h", "H", "final", "full"),
    ]
    for one, comparison in zip(found, COMPARISONS, strict=True):
        assert (one["variants"], one["benchmarks"]) == (list(comparison.variants), list(comparison.benchmarks))
        for entry, original in zip(one["entries"], comparison.entries, strict=True):
            assert (entry["verdict"], entry["p_holm"]) == (original.verdict, original.p_holm)
            for seed, card in zip(entry["seeds"], original.cards, strict=True):
                on_the_card = {field.name for field in fields(card)} - {"benchmark", "variant"}
                assert {name: seed[name] for name in on_the_card} == {name: getattr(card, name) for name in on_the_card}
                assert seed["score"] == card.metrics.get(comparison.metric)
    worse = COMPARISONS[1].entry(AWKWARD, "CUB").difference
    assert worse is not None
    assert found[1]["entries"][2]["difference"] == {name.name: getattr(worse, name.name) for name in fields(worse)}


def test_latex_is_a_booktabs_tabular_whose_dagger_is_explained() -> None:
    text = as_latex(COMPARISONS[1:])
    assert [
        line for line in text.splitlines() if line.startswith((r"\top", r"\mid", r"\bottom", r"\begin", r"\end"))
    ] == [
        r"\begin{tabular}{lll}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"full (base) & 42.0 $\pm$ 1.8 (n = 4) & -- (n = 0; 1 failed) \\" in text
    assert r"no\_mrm \& 5\% {[}{*}] & 32.1 $\pm$ 1.9$^{\dagger}$ (n = 4) & -- (n = 0; no cell of the grid) \\" in text
    assert r"K=7 & 50.0 (n = 1; 1 failed, 2 missing) & -- (n = 0; 1 without score) \\" in text
    assert text.count(r"$^{\dagger}$: at least 3 seeds in common with full, p \textless{} 0.05") == 1


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 100% #1 $x {y}", r"a\_b \& 100\% \#1 \$x \{y\}"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("~ ^ < > |", r"\textasciitilde{} \textasciicircum{} \textless{} \textgreater{} \textbar{}"),
        ("lr=5e-4 a--b---c", "lr=5e-4 a-{}-b-{}-{}-c"),
        ("γ × 2 → 448² – …", r"$\gamma$ $\times$ 2 $\rightarrow$ 448$^{2}$ -- \ldots{}"),
        ("two\n lines % no comment", r"two lines \% no comment"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert latex_text(text) == escaped


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=20))
def test_no_name_breaks_a_latex_row(name: str) -> None:
    (row,) = [line for line in latex(Table("t", ("a", "b"), ((name, "x"),))).splitlines() if line.endswith(r"x \\")]
    without = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\{[\[*]\}|-\{\}", "", row)
    assert without.count("&") == 1 and not set("%$#_{}^~[*") & set(without) and without.count("\\") == 2


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=20))
def test_no_name_breaks_a_markdown_row(name: str) -> None:
    row = markdown(Table("t", ("a", "b"), ((name, "x"),))).splitlines()[4]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
    assert re.sub(r"\\(.)", r"\1", markdown_text(name)) == " ".join(name.split())


def test_markdown_is_a_heading_a_table_and_notes() -> None:
    table = Table("H*", ("a", "b"), (("x|y", "1"), ("_z_", "2")), ("p < 1",))
    assert markdown(table) == "### H\\*\n\n| a | b |\n|---|---|\n| x\\|y | 1 |\n| \\_z\\_ | 2 |\n\np \\< 1\n"
    text = as_markdown(COMPARISONS)
    assert text.count("### ") == 2 and text.count("|---|---|---|---|---|---|---|---|---|---|\n") == 2


def test_published_figures_stand_in_a_block_of_their_own_under_a_label() -> None:
    assert "Published by their authors, not rerun here" in LABEL
    line = "A|PN NeurIPS 2020 arXiv 2008.08290 ResNet-101 not recorded 72.1 – – 67.2"
    assert line in " ".join(on_a_terminal([], (SCORE,)).split())
    for shown in (as_markdown(COMPARISONS, [SCORE]), as_latex(COMPARISONS, [SCORE])):
        block = shown[shown.index("Published by their authors") :]
        assert "PN" not in shown[: -len(block)] and "72.1" in block and "67.2" in block
    assert LABEL not in on_a_terminal(COMPARISONS) + as_markdown(COMPARISONS)
    (score,) = as_dict([], [SCORE])["published"]["scores"]
    assert (score["t1"], score["u"], score["h"], score["method"]) == (0.721, None, 0.672, "A|PN")


def test_shipped_figures_are_consistent_and_belong_to_the_whole_benchmarks() -> None:
    scores = published_on(["CUB", "SUN", "AWA2"])
    assert len(scores) == 27 and len({(one.method, one.benchmark) for one in scores}) == 27
    assert published_on(["CUB100", "CUB-standin", "synthetic"]) == ()
    assert {one.benchmark for one in published_on(["SUN"])} == {"SUN"}
    assert not any("Mg-MRN" in one.method for one in scores)
    for one in scores:
        if one.u is not None and one.s is not None and one.h is not None:
            # As printed: the authors round, or average over runs before the harmonic mean.
            assert 2 * one.u * one.s / (one.u + one.s) == pytest.approx(one.h, abs=0.2), one


def test_published_figures_out_of_range_of_unknown_fields_or_absent_are_refused() -> None:
    text = PUBLISHED.read_text(encoding="utf-8")
    for old, new in [
        ("t1: 72.1", "t1: 721"),
        ("t1: 72.1", "acc: 72.1"),
        ("{t1: 72.1, h: 67.2}", "{}"),
        ("CUB:", "CUB100:"),
    ]:
        with pytest.raises(ValidationError):
            read_published(text.replace(old, new, 1), "published.yaml")
    with pytest.raises(UserError, match="given twice"):
        read_published(text + "APN: {}\n", "published.yaml")
