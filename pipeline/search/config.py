"""Schema of a search file: base experiment, benchmarks, space, sampler, scheduler, objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mgmrn.config import Count, Frozen, Seed, Several
from pipeline.config.files import find_config, label_of, read_config, unknown_files
from pipeline.config.validation import all_at_once, all_different, validate
from pipeline.config.yaml_tree import source_of

Choice = bool | int | float | str | None | list[Any]


class Has(Frozen):
    """Condition that a list-valued parameter, such as the levels, holds an item."""

    has: str


def _condition(value: object) -> object:
    match value:
        case tuple() | Has():
            return value
        case [_, *_]:
            return tuple(value)
        case {"has": str(item), **others} if not others:
            return Has(has=item)
    raise ValueError("a condition is a list of values, or {has: item}")


class SearchedParameter(Frozen):
    """Fields of every kind of parameter."""

    when: dict[str, Annotated[tuple[Choice, ...] | Has, BeforeValidator(_condition)]] = Field(default_factory=dict)
    """Conditions: other parameter → its values, or an item of its list, with which this one is searched."""


class Categorical(SearchedParameter):
    """One of several values."""

    kind: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]


class Subsets(SearchedParameter):
    """Every non-empty subset of some values, in their given order."""

    kind: Literal["subsets"] = "subsets"
    of: Annotated[tuple[str, ...], Field(min_length=1, max_length=8)]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(list(part) for size in range(1, len(self.of) + 1) for part in combinations(self.of, size))


class Range(SearchedParameter):
    """Bounds of a number, both included."""

    log: bool = False
    """Whether the value is drawn uniformly on a logarithmic scale."""
    low: float
    high: float

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must be above 0, got low {self.low}")
        return self


class IntRange(Range):
    """A whole number from low to high, both included."""

    kind: Literal["int"] = "int"
    low: int
    high: int


class FloatRange(Range):
    """A number from low to high."""

    kind: Literal["float"] = "float"


Parameter = Annotated[Categorical | Subsets | IntRange | FloatRange, Field(discriminator="kind")]


class Objective(Frozen):
    """Objective, on the `tune` split."""

    metric: Literal["ausuc", "h"] = "ausuc"
    """AUSUC, or the harmonic mean at the best γ, of the epoch that counts (the best by AUSUC)."""
    combine: Literal["mean_normalised", "mean_rank"] = "mean_normalised"
    """Several benchmarks: the mean of score / base's score, or of the share of trials that score no better."""
    cost: Literal["none", "step_ms", "parameters"] = "none"
    """A second objective to be small: milliseconds of a training step, or trained parameters. `none`: one objective."""

    @field_validator("metric", mode="before")
    @classmethod
    def _is_not_of_the_test_set(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith(("test_", "test/")):
            raise ValueError(f"a search may not read the test set, got '{value}'; name ausuc or h, of the tune split")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        return (self.metric,) if self.cost == "none" else (self.metric, self.cost)

    @property
    def metric_key(self) -> str:
        return {"ausuc": "val/ausuc", "h": "val/gzsl_h"}[self.metric]


class Sampler(Frozen):
    """Sampler of Optuna that proposes values."""

    name: Literal["tpe", "random", "cmaes", "nsga2", "nsga3"] = "tpe"
    seed: Seed = 0
    startup_trials: Count = 8
    """TPE: number of random trials before its model is used."""


class Scheduler(Frozen):
    """Pruner of Optuna that stops trials early. Its steps are percent of a trial's epochs over all runs.

    So trials of different lengths are compared at the same point of their schedules: after as many epochs, a short one would lead.
    """

    name: Literal["asha", "median", "none"] = "asha"
    grace_percent: Annotated[int, Field(ge=1, le=99)] = 10
    """Percent of a trial's epochs before which it is not stopped."""
    reduction: Several = 3
    """asha: one of this many trials continues at each rung."""


class SearchConfig(Frozen):
    """One search."""

    base: str
    """A shipped experiment or a YAML file; relative to the working folder."""
    benchmarks: tuple[str, ...] = ()
    """Shipped benchmarks that each trial is run on; the base's own where none is named."""
    fixed: dict[str, Choice] = Field(default_factory=dict)
    """Dotted path → value, for all trials and for the base that they are compared with."""
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Dotted path of a config field → its candidate values."""
    objective: Objective = Objective()
    sampler: Sampler = Sampler()
    scheduler: Scheduler = Scheduler()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Each trial is run once per seed, on each benchmark."""
    trials: Count = 24
    workers: Count = 1
    """Ranks of each training run."""
    confirm_seeds: Annotated[int, Field(ge=3, le=1000)] = 3
    """Number of fresh seeds over which the best config is compared with the base."""

    _no_repeats = field_validator("benchmarks", "seeds")(all_different)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.objective.cost != "none" and self.scheduler.name != "none":
            problems.append("two objectives (objective.cost) allow no early stopping: set scheduler.name: none")
        if self.objective.cost != "none" and self.sampler.name == "cmaes":
            problems.append("cmaes takes one objective: use nsga2, nsga3, tpe or random with objective.cost")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class SearchFile:
    """A search file with the places of its values."""

    name: str
    label: str
    config: SearchConfig
    sources: Mapping[str, str]
    """Path of the space, or of `fixed` → `file:line`."""


def load_search(name_or_path: str) -> SearchFile:
    """Reads a shipped search (`cub100-quick`) or a YAML file; a `UserError` names all wrong values at once."""
    path = find_config("search", name_or_path)
    tree = read_config(path)
    config, problems = validate(tree, SearchConfig)
    if config is not None:
        problems = list(unknown_files(config.base, config.benchmarks, lambda field: source_of([field], tree)))
    if config is None or problems:
        raise all_at_once(problems, label_of(path))
    names = [("space", name) for name in config.space] + [("fixed", name) for name in config.fixed]
    sources = {name: source_of((part, name), tree) for part, name in names}
    return SearchFile(path.stem, label_of(path), config, sources)
