"""Comparisons as programs read them, CSV and plain values for JSON: fractions in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.analysis.comparison import Comparison, Entry, score_of
from pipeline.analysis.published import LABEL, PublishedScore
from pipeline.analysis.remarks import reasons_of, states_of
from pipeline.analysis.scores import FIGURES

CSV_COLUMNS = (
    "variant",
    "benchmark",
    "metric",
    "split",
    "base",
    "mean",
    "std",
    "n",
    "difference",
    "low",
    "high",
    "pairs",
    "p_holm",
    "verdict",
    "run_ids",
    "states",
    "reasons",
)
"""Of `as_csv`."""


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per metric, variant and benchmark under the names of `CSV_COLUMNS`; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(_csv_line(comparison, entry) for comparison in comparisons for entry in comparison.entries)
    return out.getvalue()


def as_dict(comparisons: Sequence[Comparison], published: Sequence[PublishedScore] = ()) -> dict[str, Any]:
    """Everything, with every seed's run and state; plain values alone, ready for JSON."""
    scores = [
        asdict(one) | {"t1": _fraction(one.t1), "u": _fraction(one.u), "s": _fraction(one.s), "h": _fraction(one.h)}
        for one in published
    ]
    return {
        "comparisons": [
            {
                "metric": one.metric,
                "symbol": FIGURES[one.metric],
                "split": one.split,
                "base": one.base,
                "variants": list(one.variants),
                "benchmarks": list(one.benchmarks),
                "entries": [_entry_dict(entry, one.metric) for entry in one.entries],
            }
            for one in comparisons
        ],
        "published": {"label": LABEL, "scores": scores},
    }


def _fraction(figure: float | None) -> float | None:
    """Of percent; rounded, since 72.1 / 100 is printed with an error in the last place otherwise."""
    return None if figure is None else round(figure / 100, 6)


def _csv_line(comparison: Comparison, entry: Entry) -> tuple[object, ...]:
    summary, difference = entry.summary, entry.difference
    metric = comparison.metric
    runs = [card.run_id for card in entry.cards if card.run_id and score_of(card, metric) is not None]
    return (
        entry.variant,
        entry.benchmark,
        metric,
        comparison.split,
        comparison.base,
        *((summary.mean, summary.std, summary.n) if summary else (None, None, 0)),
        *((difference.mean, difference.low, difference.high, difference.n) if difference else (None, None, None, 0)),
        entry.p_holm,
        entry.verdict,
        " ".join(runs),
        states_of(entry, metric),
        reasons_of(entry, metric),
    )


def _entry_dict(entry: Entry, metric: str) -> dict[str, Any]:
    return {
        "variant": entry.variant,
        "benchmark": entry.benchmark,
        "summary": asdict(entry.summary) if entry.summary else None,
        "difference": asdict(entry.difference) if entry.difference else None,
        "p_holm": entry.p_holm,
        "verdict": entry.verdict,
        "states": states_of(entry, metric),
        "reasons": reasons_of(entry, metric),
        "seeds": [
            {
                "seed": card.seed,
                "state": card.state,
                "reason": card.reason,
                "run_id": card.run_id,
                "experiment_id": card.experiment_id,
                "score": score_of(card, metric),
                "metrics": dict(card.metrics),
                "seconds": card.seconds,
                "gpu_seconds": card.gpu_seconds,
            }
            for card in entry.cards
        ],
    }
