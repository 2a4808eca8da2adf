"""What `search` is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.analysis.paired import PairedDifference, Summary
from pipeline.search.config import SearchFile
from pipeline.where import Where


@dataclass(frozen=True)
class SearchRequest:
    """One search, and where it runs."""

    search: SearchFile
    trials: int | None
    """None: as many as the file says."""
    concurrency: int | None
    """None: as many trials at once as the cluster has room for."""
    budget_hours: float | None
    """Hours after which no new trial starts; None: no limit."""
    resume: bool
    study_storage: str
    where: Where
    force: bool = False
    """Forgets an earlier study of the same search."""


@dataclass(frozen=True)
class Comparison:
    """The best config against the base on one benchmark, over fresh seeds of the `tune` split."""

    benchmark: str
    metric: str
    best: Summary | None
    base: Summary | None
    """None where every run failed."""
    difference: PairedDifference | None
    """Over the seeds that both have; None where there are none, or nothing to compare."""
    is_base: bool
    """Whether the best config is the base itself."""

    @property
    def verdict(self) -> str:
        """Of the paired difference, `the base is the best`, or `failed`."""
        if self.is_base:
            return "the base is the best"
        return self.difference.verdict if self.difference else "failed"


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to."""

    status: Literal["finished", "cached", "failed"]
    study: str
    trials: Mapping[str, int]
    """State → number."""
    best: Mapping[str, Any] | None
    """Trial, values and point; its score is the winner's, and no result."""
    comparisons: tuple[Comparison, ...]
    importances: Mapping[str, float]
    best_configs: tuple[str, ...]
    """A YAML file per benchmark that `train` accepts."""
    parent_run_id: str | None
    tracking_uri: str
    is_tracked: bool = True
    """Whether the tracking store has all of it."""

    @classmethod
    def from_json(cls, value: dict[str, Any], status: Literal["finished", "cached", "failed"]) -> SearchOutcome:
        """What `to_json` made, with another status."""
        comparisons = tuple(
            Comparison(
                one["benchmark"],
                one["metric"],
                Summary(**one["best"]) if one["best"] else None,
                Summary(**one["base"]) if one["base"] else None,
                PairedDifference(**one["difference"]) if one["difference"] else None,
                one["is_base"],
            )
            for one in value["comparisons"]
        )
        fields = {key: found for key, found in value.items() if key in cls.__dataclass_fields__}
        return cls(**{**fields, "comparisons": comparisons, "status": status})

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        value = {key: found for key, found in asdict(self).items() if key != "is_tracked"}
        for described, comparison in zip(value["comparisons"], self.comparisons, strict=True):
            described["verdict"] = comparison.verdict
        return value
