"""Comparisons in every form: numbers are kept, names are no markup, failed and missing cells are shown."""

import io
import json
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.comparison import CELL_COLUMNS, Comparison, compare
from pipeline.analysis.runs import SYMBOLS
from pipeline.analysis.tables import (
    Table,
    as_csv,
    as_dict,
    as_latex,
    latex,
    latex_text,
    markdown,
    markdown_text,
    published_on,
    read_published,
    short_tables,
    show_tables,
    tables,
)
from pipeline.console import Console

AWKWARD = "no_mrm & 5% [*]"


def scored(variant: str, scores: list[float]) -> pd.DataFrame:
    rows = [
        ("CUB", variant, seed, "cached", "", f"run-{variant[:2]}-{seed}", "7", 12.5, 3.25, score + 0.1, score)
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, "zsl_t1", "gzsl_h"]).reindex(columns=[*CELL_COLUMNS, *SYMBOLS])


UNSCORED = [
    ("CUB", "K=7", 1, "failed", "out of\nmemory", "", ""),
    ("CUB", "K=7", 2, "missing", "no images", "", ""),
    ("CUB", "K=7", 3, "missing", "no images", "", ""),
    ("SUN", "full", 0, "failed", "killed", "", ""),
    ("SUN", "K=7", 0, "cached", "", "half", "7"),
]
CELLS = pd.concat(
    [
        scored("full", [0.40, 0.43, 0.41, 0.44]),
        scored("old", [0.41]).assign(state="stale", reason="new code"),
        scored(AWKWARD, [0.30, 0.34, 0.31, 0.335]),
        scored("K=7", [0.5]),
        pd.DataFrame(UNSCORED, columns=CELL_COLUMNS[:7]),
    ]
)
COMPARISONS = [compare(CELLS, "full", metric, "final") for metric in ("zsl_t1", "gzsl_h")]
TROUBLES = [
    *("1 failed", "2 missing", "1 stale", "1 without score", "no cell of the grid"),
    *("seed 1: out of memory", "seeds 2, 3: no images", "seed 0: killed", "seed 0: new code"),
]
APN = """A|PN:
  {venue: NeurIPS 2020, source: arXiv 2008.08290, backbone: R, features: frozen, benchmarks: {CUB: {t1: 72.1, h: 67.2}}}
"""


def on_a_terminal(comparisons: list[Comparison]) -> str:
    out = io.StringIO()
    show_tables(tables(comparisons), Console(out=out))
    return out.getvalue()


FORMS = {
    "terminal": on_a_terminal,
    "markdown": lambda comparisons: "\n".join(map(markdown, tables(comparisons))).replace("\\", ""),
    "latex": as_latex,
    "csv": as_csv,
    "json": lambda comparisons: json.dumps(as_dict(comparisons)),
}


@pytest.mark.parametrize("form", FORMS)
def test_cells_that_failed_or_are_missing_or_stale_are_shown_with_their_reason(form: str) -> None:
    shown = FORMS[form](COMPARISONS)
    for trouble in TROUBLES:
        assert shown.count(trouble) >= (1 if form == "terminal" else len(COMPARISONS)), trouble


def test_readers_get_percent_with_one_decimal_and_the_difference_in_points() -> None:
    rows = {(row[0], row[1]): row[2:] for row in tables(COMPARISONS)[1].cells.to_numpy().tolist()}
    assert rows["full", "CUB"] == ["42.0 ± 1.8", "4", "–", "–", "–", "base"]
    mean, n, difference, interval, *rest = rows[AWKWARD, "CUB"]
    assert (mean, n, difference, *rest) == ("32.1 ± 1.9", "4", "-9.9", "< 0.001", "worse")
    assert re.fullmatch(r"-\d+\.\d … -\d+\.\d", interval)
    assert rows["K=7", "CUB"][:4] == ["50.0", "1", "+10.0", "–"]
    assert rows["K=7", "SUN"][:2] == ["–", "0"]
    assert "H on the final split in percent" in on_a_terminal(COMPARISONS)
    cells = pd.concat([scored("full", [0.4] * 3), scored("x", [0.4 - 1e-5] * 3)])
    row = tables([compare(cells, "full", "gzsl_h", "final")])[0].cells.iloc[1]
    assert (row["difference"], row["95 % interval"]) == ("+0.0", "+0.0 … +0.0"), "zero has no minus"


def test_one_table_shows_every_metric_with_marks_and_the_legend_stands_once() -> None:
    out = io.StringIO()
    show_tables(short_tables(COMPARISONS), Console(out=out))
    lines = out.getvalue().splitlines()
    assert lines[1].split() == ["variant", "benchmark", "n", "T1", "H"]
    assert lines[2].split() == ["full", "(base)", "CUB", "4", "52.0", "±", "1.8", "42.0", "±", "1.8"]
    (row,) = (line for line in lines if line.startswith(AWKWARD) and "▼" in line)
    assert row.count("▼") == 2
    assert sum("Holm's correction" in line for line in lines) == 1
    assert sum(line.startswith("H on the final split") for line in lines) == 0, "T1 is the first metric"


def test_json_holds_every_field_of_every_cell_under_the_same_keys() -> None:
    """The keys are an interface: scripts read them."""
    found = json.loads(json.dumps(as_dict(COMPARISONS, read_published(APN)), allow_nan=False))
    assert list(found) == ["comparisons", "published"]
    one = found["comparisons"][1]
    assert list(one) == ["metric", "symbol", "split", "base", "variants", "benchmarks", "entries"]
    assert [one[key] for key in list(one)[:5]] == ["gzsl_h", "H", "final", "full", ["full", "old", AWKWARD, "K=7"]]
    entry = next(entry for entry in one["entries"] if (entry["variant"], entry["benchmark"]) == (AWKWARD, "CUB"))
    keys = ["variant", "benchmark", "summary", "difference", "p_holm", "verdict", "states", "reasons", "seeds"]
    assert list(entry) == keys
    assert list(entry["summary"]) == ["mean", "std", "n"]
    assert list(entry["difference"]) == ["mean", "low", "high", "p", "n"]
    cell = {"seed": 3, "state": "cached", "reason": "", "run_id": "run-no-3", "experiment_id": "7", "score": 0.335}
    cell |= {"metrics": {"zsl_t1": 0.335 + 0.1, "gzsl_h": 0.335}, "seconds": 12.5, "gpu_seconds": 3.25}
    assert entry["seeds"][3] == cell
    failed = one["entries"][1]
    assert (failed["summary"], failed["difference"], failed["p_holm"]) == (None, None, None)
    lost = dict.fromkeys(cell) | {"seed": 0, "state": "failed", "reason": "killed", "metrics": {}}
    assert failed["seeds"] == [lost]
    (score,) = found["published"]["scores"]
    assert score == read_published(APN).iloc[0].to_dict() | {"t1": 0.721, "u": None, "s": None, "h": 0.672}


def test_latex_is_a_booktabs_tabular_whose_dagger_is_explained() -> None:
    text = as_latex(COMPARISONS[1:])
    rules = [r"\begin{tabular}{lll}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"]
    assert [line for line in text.splitlines() if line in rules] == rules
    assert r"full (base) & 42.0 $\pm$ 1.8 (n = 4) & -- (n = 0; 1 failed) \\" in text
    assert r"no\_mrm \& 5\% {[}{*}] & 32.1 $\pm$ 1.9$^{\dagger}$ (n = 4) & -- (n = 0; no cell of the grid) \\" in text
    assert r"K=7 & 50.0 (n = 1; 1 failed, 2 missing) & -- (n = 0; 1 without score) \\" in text
    assert text.count(r"$^{\dagger}$: at least 3 seeds in common with full, p \textless{} 0.05") == 1


def test_latex_escapes_signs_of_its_own_and_signs_beyond_ascii() -> None:
    assert latex_text("a_b & 100% #1 $x {y}") == r"a\_b \& 100\% \#1 \$x \{y\}"
    marks = r"\textbackslash{}input\{x\} \textasciitilde{} \textasciicircum{} \textless{} \textbar{}"
    assert latex_text(r"\input{x} ~ ^ < |") == marks
    beyond = r"lr=5e-4 a-{}-b-{}-{}-c $\gamma$ $\times$ 2 $\rightarrow$ 448$^{2}$ -- \ldots{}"
    assert latex_text("lr=5e-4 a--b---c\n γ × 2 → 448² – …") == beyond


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=20))
def test_no_name_breaks_a_row(name: str) -> None:
    table = Table("t", pd.DataFrame({"a": [name], "b": ["x"]}))
    (row,) = [line for line in latex(table).splitlines() if line.endswith(r"x \\")]
    without = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\{[\[*]\}|-\{\}", "", row)
    assert without.count("&") == 1 and not set("%$#_{}^~[*") & set(without) and without.count("\\") == 2
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", markdown(table).splitlines()[4])) == 3
    assert re.sub(r"\\(.)", r"\1", markdown_text(name)) == " ".join(name.split())


def test_shipped_figures_are_consistent_and_belong_to_the_whole_benchmarks() -> None:
    scores = published_on(["CUB", "SUN", "AWA2"])
    assert len(scores) == 27 and not scores.duplicated(["method", "benchmark"]).any()
    assert set(scores["features"]) <= {"frozen", "fine-tuned", "not recorded"}
    assert scores[["venue", "source", "backbone"]].notna().all().all()
    figures = scores[["t1", "u", "s", "h"]]
    assert figures.notna().any(axis=1).all() and ((figures >= 0) & (figures <= 100) | figures.isna()).all().all()
    assert published_on(["CUB100", "CUB-standin", "synthetic"]).empty
    assert set(published_on(["SUN"])["benchmark"]) == {"SUN"}
    assert not scores["method"].str.contains("Mg-MRN").any()
    whole = scores.dropna(subset=["u", "s", "h"])
    # As printed: the authors round, or average over runs before the harmonic mean.
    assert ((2 * whole["u"] * whole["s"] / (whole["u"] + whole["s"]) - whole["h"]).abs() <= 0.2).all()
