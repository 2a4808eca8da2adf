"""What `search` is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.analysis.paired import PairedDifference, Summary
from pipeline.search.config import SearchFile


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
    cpus_per_worker: int | None
    gpus_per_worker: int | None
    address: str | None
    tracking_uri: str
    study_storage: str
    data_root: Path
    storage: Path
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
    """Over the seeds that both have."""


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
            )
            for one in value["comparisons"]
        )
        fields = {key: found for key, found in value.items() if key in cls.__dataclass_fields__}
        return cls(**{**fields, "comparisons": comparisons, "status": status})

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        verdicts = [one.difference.verdict if one.difference else "insufficient seeds" for one in self.comparisons]
        value = asdict(self)
        for comparison, verdict in zip(value["comparisons"], verdicts, strict=True):
            comparison["verdict"] = verdict
        return value
