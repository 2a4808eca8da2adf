"""Figures of other methods as their authors published them, kept apart from what was run here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from mgmrn.config import Frozen
from pipeline.config.yaml_tree import parse_yaml, plain

PUBLISHED = Path(__file__).with_name("published.yaml")

LABEL = "Published by their authors, not rerun here; mostly selected on the test images (beside H*, not H)"
"""Stands over these figures wherever they are shown."""

Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class PublishedScore:
    """One method on one benchmark."""

    method: str
    venue: str
    """With the year."""
    source: str
    """The paper's arXiv id, or where else the figures stand."""
    backbone: str
    features: str
    """Of the backbone: `frozen`, `fine-tuned`, or `not recorded`."""
    benchmark: str
    t1: float | None
    """In percent as printed, like the next three; None where it is not at hand."""
    u: float | None
    s: float | None
    h: float | None


class _Figures(Frozen):
    t1: Percent | None = None
    u: Percent | None = None
    s: Percent | None = None
    h: Percent | None = None

    @model_validator(mode="after")
    def _holds_something(self) -> _Figures:
        if not self.model_fields_set:
            raise ValueError("a benchmark without any figure is left out")
        return self


class _Method(Frozen):
    venue: Text
    source: Text
    backbone: Text
    features: Literal["frozen", "fine-tuned", "not recorded"]
    benchmarks: Annotated[dict[Literal["CUB", "SUN", "AWA2"], _Figures], Field(min_length=1)]


def read_published(text: str, label: str) -> tuple[PublishedScore, ...]:
    """Benchmark by benchmark, the methods of each in the order of the text; `label` names the text in errors.

    Raises:
        UserError: for what is no YAML.
        pydantic.ValidationError: for a field or figure that does not belong there.
    """
    methods = TypeAdapter(dict[str, _Method]).validate_python(plain(parse_yaml(text, label)))
    return tuple(
        PublishedScore(
            method=name,
            venue=method.venue,
            source=method.source,
            backbone=method.backbone,
            features=method.features,
            benchmark=benchmark,
            **figures.model_dump(),
        )
        for benchmark in ("CUB", "SUN", "AWA2")
        for name, method in methods.items()
        for on, figures in method.benchmarks.items()
        if on == benchmark
    )


def published_on(benchmarks: Collection[str]) -> tuple[PublishedScore, ...]:
    """The shipped figures on benchmarks of exactly these names: a stand-in or a part of CUB compares with none."""
    shipped = read_published(PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name)
    return tuple(score for score in shipped if score.benchmark in benchmarks)
