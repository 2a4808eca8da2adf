"""Comparisons for readers (terminal, Markdown, LaTeX: percent with one decimal) and for programs (CSV, JSON: fractions)."""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.analysis.comparison import SIGNIFICANCE, Comparison
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.analysis.runs import FIGURES, SYMBOLS, records_of, rows_of
from pipeline.config.yaml_tree import parse_yaml, plain
from pipeline.console import Console

CSV_COLUMNS = (
    *("variant", "benchmark", "metric", "split", "base", "mean", "std", "n", "difference", "low", "high", "pairs"),
    *("p_holm", "verdict", "run_ids", "states", "reasons"),
)
LABEL = "Published by their authors, not rerun here; mostly selected on the test images (beside H*, not H)"
"""Heading of published figures, which are never mixed with figures of runs."""
_PUBLISHED = ("benchmark", "method", "venue", "source", "backbone", "features")
_FIGURES = ("t1", "u", "s", "h")

_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    # LaTeX takes a star or a bracket at the start of a row for an argument of the row break before it.
    | {sign: f"{{{sign}}}" for sign in "*["}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "…": r"\ldots{}", "²": r"$^{2}$"}
    | {"±": r"$\pm$", "†": r"$^{\dagger}$", "×": r"$\times$", "→": r"$\rightarrow$", "−": "$-$"}
    | {"β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$"}
)


class Table(NamedTuple):
    """A table of plain text."""

    title: str
    cells: pd.DataFrame
    """Strings, without markup."""
    notes: tuple[str, ...] = ()


def tables(comparisons: Sequence[Comparison], published: pd.DataFrame | None = None) -> list[Table]:
    """Details of every metric, then the published figures if there are any."""
    return [*map(detail_table, comparisons), *_published_tables(published)]


def short_tables(comparisons: Sequence[Comparison], published: pd.DataFrame | None = None) -> list[Table]:
    """All metrics in one table, details of the first one, then the published figures if there are any."""
    return [summary_table(comparisons), detail_table(comparisons[0]), *_published_tables(published)]


def summary_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per variant and benchmark, one column per metric: mean ± std, with a mark where it is better or worse than the base."""
    first, marks = comparisons[0], {"better": " ▲", "worse": " ▼"}
    rows = first.entries
    cells = {
        "variant": [_named(first, name) for name in rows["variant"]],
        "benchmark": rows["benchmark"].tolist(),
        "n": [str(n) for n in rows["n"]],
    }
    for one in comparisons:
        entries = rows_of(one.entries)
        cells[SYMBOLS[one.metric]] = [percent(each.mean, each.std) + marks.get(each.verdict, "") for each in entries]
    title = f"the {first.split} split in percent, mean ± std over n seeds"
    return Table(title, pd.DataFrame(cells), (_claim(first, "better (▲), worse (▼)"), *_gaps(first)))


def detail_table(comparison: Comparison) -> Table:
    """One row per variant and benchmark: mean, difference to the base, and verdict; the notes give the reasons for missing seeds."""
    rows = [
        {
            "variant": one.variant,
            "benchmark": one.benchmark,
            "mean ± std": percent(one.mean, one.std),
            "n": str(one.n),
            "difference": _points(one.difference),
            "95 % interval": "–" if pd.isna(one.low) else f"{_points(one.low)} … {_points(one.high)}",
            "p (Holm)": "–" if pd.isna(one.p_holm) else "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}",
            "verdict": one.verdict,
        }
        for one in rows_of(comparison.entries)
    ]
    title = f"{_subject(comparison)}, differences to {comparison.base} in points"
    return Table(title, pd.DataFrame(rows), (_claim(comparison, "better (▲), worse (▼)"), *_gaps(comparison)))


def overview_table(comparison: Comparison) -> Table:
    """Variants × benchmarks: mean ± std with n; the notes give the reasons for missing seeds."""
    entries = comparison.entries
    dagger = entries["verdict"].isin(["better", "worse"]).map({True: "†", False: ""})
    means = [percent(mean, std) for mean, std in zip(entries["mean"], entries["std"], strict=True)]
    states = entries["states"].mask(entries["states"] != "", "; " + entries["states"])
    shown = entries.assign(cell=means + dagger + " (n = " + entries["n"].astype(str) + states + ")")
    wide = shown.pivot(index="variant", columns="benchmark", values="cell")
    wide = wide.reindex(index=comparison.variants, columns=comparison.benchmarks)
    wide.insert(0, "variant", [_named(comparison, name) for name in comparison.variants], allow_duplicates=True)
    return Table(_subject(comparison), wide, (_claim(comparison, "†"), *_gaps(comparison)))


def published_table(published: pd.DataFrame) -> Table:
    """Published figures in percent as printed."""
    figures = {key.upper(): published[key].map(lambda one: "–" if one != one else f"{one:.1f}") for key in _FIGURES}
    return Table(LABEL, published[list(_PUBLISHED)].assign(**figures))


def published_on(benchmarks: Collection[str]) -> pd.DataFrame:
    """Published figures on benchmarks of exactly these names: a stand-in or a part of CUB compares with none."""
    shipped = read_published(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return shipped[shipped["benchmark"].isin(list(benchmarks))]


def read_published(text: str) -> pd.DataFrame:
    """Published figures of a YAML text in percent (NaN: not given), one row per benchmark and method, benchmark by benchmark."""
    rows = [
        {**method, "method": name, "benchmark": benchmark, **figures}
        for name, method in plain(parse_yaml(text, "published.yaml")).items()
        for benchmark, figures in method["benchmarks"].items()
    ]
    table = pd.DataFrame(rows, columns=[*_PUBLISHED[1:], "benchmark", *_FIGURES]).astype(dict.fromkeys(_FIGURES, float))
    order = ["CUB", "SUN", "AWA2"]
    return table.sort_values("benchmark", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def as_latex(comparisons: Sequence[Comparison], published: pd.DataFrame | None = None) -> str:
    """Overview of every metric, then the published figures if there are any."""
    return "\n".join(map(latex, [*map(overview_table, comparisons), *_published_tables(published)]))


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per metric, variant and benchmark under `CSV_COLUMNS`; an unknown value is empty."""
    entries = pd.concat([one.entries for one in comparisons])
    return entries.to_csv(columns=list(CSV_COLUMNS), index=False, lineterminator="\n")


def as_dict(comparisons: Sequence[Comparison], published: pd.DataFrame | None = None) -> dict[str, Any]:
    """All entries with every seed's run and state, as plain values for JSON."""
    figures = list(_FIGURES)
    # Rounded: 72.1 / 100 has an error in the last place.
    scores = [] if published is None else records_of(published.assign(**(published[figures] / 100).round(6)))
    return {
        "comparisons": [
            {
                **{"metric": one.metric, "symbol": SYMBOLS[one.metric], "split": one.split, "base": one.base},
                **{"variants": one.variants, "benchmarks": one.benchmarks},
                "entries": [_entry(entry, one) for entry in records_of(one.entries)],
            }
            for one in comparisons
        ],
        "published": {"label": LABEL, "scores": scores},
    }


def show_tables(found: Sequence[Table], console: Console) -> None:
    """Print tables, then their notes, each once."""
    for table in found:
        console.table(list(table.cells.columns), table.cells.to_numpy().tolist(), table.title)
        console.line("")
    for note in dict.fromkeys(note for table in found for note in table.notes):
        console.line(note)


def markdown(table: Table) -> str:
    """Heading, table and notes as GitHub Markdown, with a line feed at the end."""
    rows = [list(table.cells.columns), *table.cells.to_numpy().tolist()]
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(table.cells.columns))
    blocks = [f"### {markdown_text(table.title)}", "\n".join(lines), *map(markdown_text, table.notes)]
    return "\n\n".join(blocks) + "\n"


def markdown_text(text: str) -> str:
    """One line of text with everything escaped that Markdown takes for markup."""
    return re.sub(r"([\\`*_|<>~&\[\]])", r"\\\1", " ".join(text.split()))


def latex(table: Table) -> str:
    """Booktabs `tabular` with the title above and the notes below, with a line feed at the end."""
    cells = table.cells.map(latex_text).rename(columns=latex_text)
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"{{\small {latex_text(table.title)}\par}}",
        cells.to_latex(index=False, escape=False).rstrip(),
        *(rf"{{\par\footnotesize {latex_text(note)}\par}}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """One line of text with everything escaped that LaTeX takes for a command; signs beyond ASCII become commands."""
    # Without the braces, two hyphens become a dash.
    return "-{}".join(part.translate(_LATEX) for part in re.split("-(?=-)", " ".join(text.split())))


def percent(mean: float, std: float = math.nan) -> str:
    """A fraction as percent with one decimal, like `42.0 ± 1.8`; NaN for the deviation leaves it out."""
    if mean != mean:
        return "–"
    return f"{100 * mean:.1f}" + ("" if std != std else f" ± {100 * std:.1f}")


def _named(comparison: Comparison, variant: str) -> str:
    return f"{variant} (base)" if variant == comparison.base else variant


def _gaps(comparison: Comparison) -> list[str]:
    entries = comparison.entries
    gaps = rows_of(entries[entries["reasons"] != ""])
    return [f"{one.variant} on {one.benchmark}: {one.reasons}" for one in gaps]


def _points(difference: float) -> str:
    return "–" if difference != difference else f"{100 * difference:+z.1f}"


def _subject(comparison: Comparison) -> str:
    return f"{SYMBOLS[comparison.metric]} on the {comparison.split} split in percent, mean ± std over n seeds"


def _claim(comparison: Comparison, sign: str) -> str:
    return (
        f"{sign}: at least {LEAST_PAIRS} seeds in common with {comparison.base}, p < {SIGNIFICANCE} in the paired t-test after "
        f"Holm's correction (differences: {comparison.entries['p_holm'].count()}), and a bootstrapped 95 % interval without zero."
    )


def _published_tables(published: pd.DataFrame | None) -> list[Table]:
    return [] if published is None or published.empty else [published_table(published)]


def _entry(entry: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    def some(record: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {key: record[key] for key in keys}

    cells = comparison.cells
    seeds = cells[(cells["variant"] == entry["variant"]) & (cells["benchmark"] == entry["benchmark"])]
    difference = {"mean": entry["difference"], **some(entry, "low", "high", "p"), "n": entry["pairs"]}
    return {
        **some(entry, "variant", "benchmark"),
        "summary": some(entry, "mean", "std", "n") if entry["n"] else None,
        "difference": difference if entry["pairs"] else None,
        **some(entry, "p_holm", "verdict", "states", "reasons"),
        "seeds": [
            {
                **some(cell, "seed", "state", "reason"),
                "run_id": cell["run_id"] or None,
                "experiment_id": cell["experiment_id"] or None,
                "score": cell["score"],
                "metrics": {key: cell[key] for key in FIGURES if cell[key] is not None},
                **some(cell, "seconds", "gpu_seconds"),
            }
            for cell in records_of(seeds)
        ],
    }
