"""Outcome of a search: what `--json` prints, and the tables for people."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, computed_field

from pipeline.analysis.paired import PairedDifference, Summary
from pipeline.config.yaml_tree import yaml_value
from pipeline.console import Console, where_tracked


class Comparison(BaseModel, frozen=True):
    """Best config against the base on one benchmark, over fresh seeds of the `tune` split."""

    benchmark: str
    metric: str
    best: Summary | None
    base: Summary | None
    difference: PairedDifference | None
    """Difference over the seeds that both have; None without any, or where the best config is the base."""
    is_base: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Verdict of the paired difference, `the base is the best`, or `failed`."""
        if self.is_base:
            return "the base is the best"
        return self.difference.verdict if self.difference else "failed"


class SearchOutcome(BaseModel, frozen=True):
    """Result of a search, in the form that `--json` prints and the study keeps."""

    status: Literal["finished", "cached", "failed"]
    study: str
    trials: Mapping[str, int]
    best: Mapping[str, Any] | None
    """Number, values and point of the best trial, whose score is optimistic as the largest of many."""
    comparisons: tuple[Comparison, ...]
    importances: Mapping[str, float]
    best_configs: tuple[str, ...]
    """Paths of the best config on each benchmark, as YAML files that `train` accepts."""
    parent_run_id: str | None
    tracking_uri: str
    is_tracked: bool = Field(default=True, exclude=True)


def show_outcome(outcome: SearchOutcome, console: Console) -> None:
    """Print trials, the best point, importances, and the comparison with the base."""
    counts = ", ".join(f"{count} {state}" for state, count in outcome.trials.items())
    console.line(f"study {outcome.study}: {counts}")
    if outcome.best is None:
        console.line("no trial finished: see the errors above")
        return
    shares = {path: f"{share:.2f}" for path, share in outcome.importances.items()}
    values = [[path, yaml_value(value), shares.get(path, "–")] for path, value in outcome.best["point"].items()]
    headers = ["value of the best trial", "", "share of the variance"]
    console.table(headers, values, f"trial {outcome.best['trial']}")
    rows = [
        [one.benchmark, one.metric, _shown(one.best), _shown(one.base), *_difference(one.difference), one.verdict]
        for one in outcome.comparisons
    ]
    title = "best against base over fresh seeds of the tune split (mean ± std)"
    console.table(["benchmark", "metric", "best", "base", "difference", "95 % interval", "verdict"], rows, title)
    for path in outcome.best_configs:
        console.line(f"best config: {path}")
    if outcome.is_tracked:
        console.line(where_tracked(outcome.tracking_uri, outcome.study.rpartition("-")[0]))


def note(outcome: SearchOutcome) -> str:
    """Description of the search's own run in Markdown: the comparison over fresh seeds, the best point, and the number of trials."""
    parts = [
        f"**best {one.metric} {_shown(one.best)}** on {one.benchmark}, base {_shown(one.base)}: {one.verdict}"
        for one in outcome.comparisons
    ]
    if outcome.best is not None:
        values = ", ".join(f"`{path}={yaml_value(value)}`" for path, value in outcome.best["point"].items())
        parts.append(f"trial {outcome.best['trial']}: {values}")
    parts.append(", ".join(f"{count} {state}" for state, count in outcome.trials.items()) + " trials")
    return "\n\n".join(parts)


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
