"""Request and outcome of `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.config.compose import ComposedConfig
from pipeline.train.placement import Workers
from pipeline.train.spec import Split
from pipeline.where import Where


@dataclass(frozen=True)
class TrainRequest:
    """One launch: an experiment, its seeds, and where it runs."""

    experiment: str
    composed: ComposedConfig
    split: Split | None
    """None: the whole protocol, `tune` and then `final`."""
    seeds: tuple[int, ...]
    workers: Workers
    where: Where
    force: bool = False
    """Runs again what is finished."""


@dataclass(frozen=True)
class RunSummary:
    """Outcome of one run, as `--json` prints it."""

    run_id: str
    name: str
    benchmark: str
    variant: str
    split: Split
    seed: int
    config_hash: str
    status: Literal["finished", "cached", "failed", "stopped"]
    gamma: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`test/…`, `val/…`, `perf/…`; accuracies are fractions."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a launch."""

    status: Literal["finished", "cached", "failed", "stopped"]
    runs: tuple[RunSummary, ...]
    parent_run_id: str | None
    tracking_uri: str
    is_tracked: bool = True
    """Whether the tracking store has all of it."""

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `--json` prints."""
        return {key: value for key, value in asdict(self).items() if key != "is_tracked"}
