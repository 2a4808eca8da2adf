"""Outcome of a search as text."""

from __future__ import annotations

from pipeline.analysis.paired import PairedDifference, Summary
from pipeline.config.yaml_tree import yaml_value
from pipeline.console import Console
from pipeline.search.request import SearchOutcome


def show_outcome(outcome: SearchOutcome, console: Console) -> None:
    """Prints trials, the best point, importances, and the comparison with the base."""
    counts = ", ".join(f"{count} {state}" for state, count in outcome.trials.items())
    console.line(f"study {outcome.study}: {counts}")
    if outcome.best is None:
        console.line("no trial came to its end: see the errors above")
        return
    point = outcome.best["point"].items()
    console.table(
        ["value of the best trial", "", "share of the variance"],
        [[path, yaml_value(value), _share(outcome.importances.get(path))] for path, value in point],
        f"trial {outcome.best['trial']}",
    )
    rows = [
        [one.benchmark, one.metric, _shown(one.best), _shown(one.base), *_difference(one.difference), one.verdict]
        for one in outcome.comparisons
    ]
    title = "best against base over fresh seeds of the tune split (mean ± std)"
    console.table(["benchmark", "metric", "best", "base", "difference", "95 % interval", "verdict"], rows, title)
    for path in outcome.best_configs:
        console.line(f"best config: {path}")
    if outcome.is_tracked:
        console.line(f"tracked in {outcome.tracking_uri}, run {outcome.parent_run_id}")


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


def _shown(summary: Summary | None) -> str:
    if summary is None:
        return "failed"
    spread = "" if summary.std is None else f" ± {summary.std:.4f}"
    return f"{summary.mean:.4f}{spread} (n = {summary.n})"


def _difference(difference: PairedDifference | None) -> tuple[str, str]:
    if difference is None:
        return "–", "–"
    interval = "–" if difference.low is None else f"{difference.low:+.4f} … {difference.high:+.4f}"
    return f"{difference.mean:+.4f}", interval
