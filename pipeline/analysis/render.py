"""Comparisons as people read them, on a terminal, in Markdown and in LaTeX: percent with one decimal, differences in points.

What has no score is shown with its reason. The form for programs is in `pipeline.analysis.export`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analysis.comparison import SIGNIFICANCE, Comparison, Entry
from pipeline.analysis.paired import LEAST_PAIRS, PairedDifference, Summary
from pipeline.analysis.published import LABEL, PublishedScore
from pipeline.analysis.remarks import reasons_of, states_of
from pipeline.analysis.scores import FIGURES
from pipeline.analysis.table import Table, latex, markdown


def detail_table(comparison: Comparison) -> Table:
    """One row per variant and benchmark: the mean, the difference to the base, and what is to be said of seeds."""
    headers = ("variant", "benchmark", "mean ± std", "n", "difference", "95 % interval", "pairs", "p (Holm)", "verdict")
    return Table(
        f"{_subject(comparison)}, differences to {comparison.base} in points",
        (*headers, "remarks"),
        tuple(
            (
                entry.variant,
                entry.benchmark,
                _percent(entry.summary),
                _count(entry),
                *(_difference(entry.difference) if entry.variant != comparison.base else ("–", "–", "–")),
                _p(entry.p_holm),
                entry.verdict,
                reasons_of(entry, comparison.metric) or "–",
            )
            for entry in comparison.entries
        ),
        (_claim(comparison, "better, worse"),),
    )


def overview_table(comparison: Comparison) -> Table:
    """Variants × benchmarks in few characters: mean ± std with n; the notes say why seeds are missing."""
    metric = comparison.metric
    rows = tuple(
        (
            f"{variant} (base)" if variant == comparison.base else variant,
            *(_cell(comparison.entry(variant, benchmark), metric) for benchmark in comparison.benchmarks),
        )
        for variant in comparison.variants
    )
    gaps = [(entry, reasons_of(entry, metric)) for entry in comparison.entries]
    notes = [f"{entry.variant} on {entry.benchmark}: {reasons}" for entry, reasons in gaps if reasons]
    headers = ("variant", *comparison.benchmarks)
    return Table(_subject(comparison), headers, rows, (_claim(comparison, "†"), *notes))


def published_table(scores: Sequence[PublishedScore]) -> Table:
    """Figures that were not measured here, labelled so, in percent as printed."""
    headers = ("benchmark", "method", "venue", "source", "backbone", "features", "T1", "U", "S", "H")
    rows = tuple(
        (
            one.benchmark,
            one.method,
            one.venue,
            one.source,
            one.backbone,
            one.features,
            *map(_printed, (one.t1, one.u, one.s, one.h)),
        )
        for one in scores
    )
    return Table(LABEL, headers, rows)


def as_markdown(comparisons: Sequence[Comparison], published: Sequence[PublishedScore] = ()) -> str:
    """The details of every metric, then the published block where there is one."""
    return "\n".join(markdown(table) for table in tables(comparisons, published))


def as_latex(comparisons: Sequence[Comparison], published: Sequence[PublishedScore] = ()) -> str:
    """An overview per metric, then the published block where there is one."""
    overviews = [overview_table(comparison) for comparison in comparisons]
    return "\n".join(latex(table) for table in (*overviews, *_published(published)))


def tables(comparisons: Sequence[Comparison], published: Sequence[PublishedScore] = ()) -> tuple[Table, ...]:
    """The details of every metric, then the published block where there is one, for a terminal."""
    return (*(detail_table(comparison) for comparison in comparisons), *_published(published))


def _subject(comparison: Comparison) -> str:
    return f"{FIGURES[comparison.metric]} on the {comparison.split} split in percent, mean ± std over n seeds"


def _claim(comparison: Comparison, sign: str) -> str:
    corrected = sum(entry.p_holm is not None for entry in comparison.entries)
    return (
        f"{sign}: at least {LEAST_PAIRS} seeds in common with {comparison.base}, p < {SIGNIFICANCE} in the paired t-test after "
        f"Holm's correction (differences: {corrected}), and a bootstrapped 95 % interval without zero."
    )


def _percent(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _count(entry: Entry) -> str:
    return str(entry.summary.n if entry.summary else 0)


def _difference(difference: PairedDifference | None) -> tuple[str, str, str]:
    """Mean, interval and number of pairs."""
    if difference is None:
        return "–", "–", "0"
    low, high = difference.low, difference.high
    interval = "–" if low is None or high is None else f"{100 * low:+z.1f} … {100 * high:+z.1f}"
    return f"{100 * difference.mean:+z.1f}", interval, str(difference.n)


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _cell(entry: Entry, metric: str) -> str:
    dagger = "†" if entry.verdict in ("better", "worse") else ""
    states = states_of(entry, metric)
    return f"{_percent(entry.summary)}{dagger} (n = {_count(entry)}{f'; {states}' if states else ''})"


def _published(scores: Sequence[PublishedScore]) -> tuple[Table, ...]:
    return (published_table(scores),) if scores else ()


def _printed(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.1f}"
