"""What an ablation is: a base experiment, benchmarks, seeds, and variants. Read from `configs/ablation/*.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mgmrn.config import Count, Frozen
from mgmrn.errors import UserError
from pipeline.analysis.scores import FIGURES
from pipeline.config_files import find_config, label_of, read_config
from pipeline.validation import all_at_once, validate
from pipeline.yaml_tree import Section, source_of

Value = bool | int | float | str | None | list[Any]
Overrides = dict[str, Value]
"""Dotted path → value."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


class AblationConfig(Frozen):
    """One grid."""

    base: str
    """A shipped experiment or a YAML file; relative to the working folder."""
    benchmarks: tuple[str, ...] = ()
    """Shipped benchmarks, or files; the base's own where none is named."""
    fixed: Overrides = Field(default_factory=dict)
    """For all cells, the base included."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    mode: Literal["one_at_a_time", "grid", "list"] = "one_at_a_time"
    """one_at_a_time: the base, and each variant on top of it. grid: the base, and every combination of one setting of each
    factor. list: the variants alone, the first of which the others are compared with."""
    base_name: str = "base"
    """What the base is called in tables."""
    variants: dict[str, Overrides] = Field(default_factory=dict)
    """Name → what it changes; not for `grid`."""
    factors: dict[str, dict[str, Overrides]] = Field(default_factory=dict)
    """Factor → setting → what it changes; for `grid` alone."""
    split: Literal["protocol", "tune"] = "protocol"
    """protocol: each cell is a `tune` and a `final` run, scored on test images. tune: scored on validation images."""
    primary: str = "gzsl_h"
    """The figure that decides."""
    budget_hours: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock hours of a launch."""
    workers: Count = 1
    """Ranks of each run."""

    @field_validator("benchmarks", "seeds")
    @classmethod
    def _all_different(cls, values: tuple[str, ...] | tuple[int, ...]) -> tuple[str, ...] | tuple[int, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"one is given twice, got {list(values)}")
        return values

    @field_validator("primary")
    @classmethod
    def _is_a_figure(cls, value: str) -> str:
        if value not in FIGURES:
            raise ValueError(f"'{value}' is no figure: name one of {', '.join(FIGURES)}")
        return value

    @field_validator("base_name", "variants", "factors")
    @classmethod
    def _can_be_names(cls, value: Any, info: ValidationInfo) -> Any:
        names = [value] if isinstance(value, str) else list(value)
        if info.field_name == "factors":
            names += [setting for factor in value.values() for setting in factor]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot name a variant: use letters, digits, _, + and -")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> AblationConfig:
        if self.mode == "grid" and (self.variants or not self.factors):
            raise ValueError("a grid has factors and no variants")
        if self.mode != "grid" and (self.factors or not self.variants):
            raise ValueError(f"mode {self.mode} has variants and no factors")
        if self.mode == "list" and len(self.variants) < 2:
            raise ValueError("a list needs two variants to compare")
        if self.mode != "list" and self.base_name in self.variants:
            raise ValueError(f"'{self.base_name}' names the base and a variant: rename one, or set base_name")
        return self


@dataclass(frozen=True)
class AblationFile:
    """An ablation as it was written."""

    name: str
    label: str
    question: str
    """The comment at the file's head."""
    config: AblationConfig
    tree: Section
    """With the line of every value."""


def load_ablation(name_or_path: str) -> AblationFile:
    """Reads a shipped ablation (`components`, or `ablation/components`) or a YAML file.

    Raises:
        UserError: unknown ablation, unreadable YAML, or any number of wrong values at once.
    """
    path = find_config("ablation", name_or_path.removeprefix("ablation/"))
    tree = read_config(path)
    config, problems = validate(tree, AblationConfig)
    if config is not None:
        problems = list(_unknown_files(config, tree))
    if config is None or problems:
        raise all_at_once(problems, label_of(path))
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    return AblationFile(path.stem, label_of(path), "\n".join(comment), config, tree)


def with_benchmarks(file: AblationFile, names: tuple[str, ...]) -> AblationFile:
    """The same grid on other benchmarks.

    Raises:
        UserError: for a benchmark that there is not, or one that is given twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"a benchmark is given twice: {', '.join(names)}", "--benchmarks")
    for name in names:
        try:
            find_config("benchmark", name)
        except UserError as error:
            raise UserError(error.message, "--benchmarks", error.hint) from error
    config = file.config.model_copy(update={"benchmarks": names})
    return AblationFile(file.name, file.label, file.question, config, file.tree)


def _unknown_files(config: AblationConfig, tree: Section) -> Iterator[UserError]:
    named = [("base", "experiment", config.base), *(("benchmarks", "benchmark", name) for name in config.benchmarks)]
    for field, group, name in named:
        try:
            find_config(group, name)
        except UserError as error:
            yield UserError(error.message, source_of([field], tree), error.hint)
