"""What the page of an ablation is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.analysis.comparison import Comparison
from pipeline.analysis.published import PublishedScore
from pipeline.analysis.scores import ScoreCard


@dataclass(frozen=True)
class Curve:
    """Seen–unseen curve of one run."""

    benchmark: str
    variant: str
    run_id: str
    points: tuple[tuple[float, float], ...]
    """(S, U) along the curve."""


@dataclass(frozen=True)
class ClassChange:
    """What a variant does to one class."""

    name: str
    group: Literal["seen", "unseen"]
    difference: float
    """Accuracy less the base's, averaged over the seeds that both have."""


@dataclass(frozen=True)
class ClassChanges:
    """All classes of one benchmark under one variant."""

    benchmark: str
    variant: str
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True)
class ConfigChange:
    """One config value that a variant has otherwise than the base, as written."""

    path: str
    base: str
    value: str


@dataclass(frozen=True)
class VariantConfig:
    """In what a variant differs from the base."""

    variant: str
    changes: tuple[ConfigChange, ...]


@dataclass(frozen=True)
class PageContent:
    """Everything that the page shows."""

    title: str
    question: str
    """What the ablation asks, as its file says."""
    command: str
    """That made the page."""
    made_at: str
    """ISO time."""
    commit: str
    standin: bool
    """Whether the pictures are drawn stand-ins, so that no figure is a result."""
    comparisons: tuple[Comparison, ...]
    """One per metric, of the same variants and benchmarks; the first is the one that the ablation is decided by."""
    curves: tuple[Curve, ...] = ()
    classes: tuple[ClassChanges, ...] = ()
    configs: tuple[VariantConfig, ...] = ()
    published: tuple[PublishedScore, ...] = ()
    ui: str | None = None
    """Address of the MLflow UI that run ids link to."""

    @property
    def primary(self) -> Comparison:
        """By the metric that decides."""
        return self.comparisons[0]

    @property
    def runs(self) -> tuple[ScoreCard, ...]:
        """All cells, run or not."""
        return tuple(card for entry in self.primary.entries for card in entry.cards)
