"""Schema of an ablation file: a base experiment, benchmarks, seeds, and variants."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from mgmrn.config import Count, Frozen, Seed
from mgmrn.errors import UserError
from pipeline.analysis.runs import FIGURES
from pipeline.config.files import config_text, find_config, label_of, read_config, unknown_files
from pipeline.config.validation import all_at_once, all_different, validate
from pipeline.config.yaml_tree import DEFAULT, Section, source_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MOST_COMBINATIONS = 10_000
"""Largest number of variants in a grid."""


def _one_value(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("a mapping overrides nothing: write the whole path of each value, like loss.scale: 10")
    return value


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"'{value}' cannot name a variant: use letters, digits, _ and -, 64 at most")
    return value


Name = Annotated[str, AfterValidator(_name)]
Overrides = dict[str, Annotated[Any, AfterValidator(_one_value)]]
"""Dotted path → value."""


class AblationConfig(Frozen):
    """One grid."""

    base: str
    """A shipped experiment or a YAML file; relative to the working folder."""
    benchmarks: tuple[str, ...] = ()
    """Shipped benchmarks, or files; the base's own where none is named."""
    fixed: Overrides = Field(default_factory=dict)
    """For all cells, the base included."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    mode: Literal["one_at_a_time", "grid", "list"] = "one_at_a_time"
    """one_at_a_time: the base, and each variant on top of it. grid: the base, and every combination of one setting of each
    factor. list: the variants alone, the first of which the others are compared with."""
    base_name: Name = "base"
    """Name of the base in tables."""
    variants: dict[Name, Overrides] = Field(default_factory=dict)
    """Name → what it changes; not for `grid`."""
    factors: dict[Name, Annotated[dict[Name, Overrides], Field(min_length=1)]] = Field(default_factory=dict)
    """Factor → setting → what it changes; for `grid` alone."""
    split: Literal["protocol", "tune"] = "protocol"
    """protocol: each cell is a `tune` and a `final` run, scored on test images. tune: scored on validation images."""
    primary: str = "gzsl_h"
    """The figure that decides."""
    budget_hours: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock hours of a launch."""
    workers: Count = 1
    """Ranks of each run."""

    _no_repeats = field_validator("benchmarks", "seeds")(all_different)

    @field_validator("primary")
    @classmethod
    def _is_a_figure(cls, value: str) -> str:
        if value not in FIGURES:
            raise ValueError(f"'{value}' is no figure: name one of {', '.join(FIGURES)}")
        return value

    @property
    def scored_split(self) -> Literal["tune", "final"]:
        return "tune" if self.split == "tune" else "final"


@dataclass(frozen=True)
class AblationFile:
    """An ablation as it was written."""

    name: str
    label: str
    question: str
    """Comment at the head of the file."""
    config: AblationConfig
    tree: Section
    """Values with their lines."""

    def place(self, *names: str) -> str:
        source = source_of(names, self.tree)
        return self.label if source == DEFAULT else source


def load_ablation(name_or_path: str) -> AblationFile:
    """Read a shipped ablation (`components`, or `ablation/components`) or a YAML file; a `UserError` names all wrong values at once."""
    is_file = name_or_path.endswith((".yaml", ".yml"))
    path = find_config("ablation", name_or_path if is_file else name_or_path.removeprefix("ablation/"))
    tree = read_config(path)
    config, problems = validate(tree, AblationConfig)
    if config is None:
        raise all_at_once(problems, label_of(path))
    lines = config_text(path).splitlines()
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    file = AblationFile(path.stem, label_of(path), "\n".join(comment), config, tree)
    if problems := [*unknown_files(config.base, config.benchmarks, file.place), *_misfits(file)]:
        raise all_at_once(problems, file.label)
    return file


def with_benchmarks(file: AblationFile, names: tuple[str, ...]) -> AblationFile:
    """The same ablation on other benchmarks; a `UserError` for an unknown one, or one that is given twice."""
    if len(set(names)) < len(names):
        raise UserError(f"a benchmark is given twice: {', '.join(names)}", "--benchmarks")
    if problems := list(unknown_files(file.config.base, names, lambda field: f"--{field}")):
        raise problems[0]
    return replace(file, config=file.config.model_copy(update={"benchmarks": names}))


def _misfits(file: AblationFile) -> Iterator[UserError]:
    """Errors for fields that do not belong to the mode, or that it lacks."""
    config, mode = file.config, file.config.mode
    wanted, other = ("factors", "variants") if mode == "grid" else ("variants", "factors")
    if getattr(config, other):
        yield UserError(f"mode {mode} has {wanted} and no {other}", file.place(other))
    if not getattr(config, wanted):
        yield UserError(f"mode {mode} needs {wanted}", file.place("mode"))
    elif (count := prod(map(len, config.factors.values()))) > MOST_COMBINATIONS:
        yield UserError(f"{count} combinations of factors, {MOST_COMBINATIONS} are the most", file.place("factors"))
    elif mode == "list" and len(config.variants) < 2:
        yield UserError("a list needs two variants to compare", file.place("variants"))
