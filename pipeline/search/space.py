"""Space of a search: conditions between parameters, checks against the schema of the config, and the drawing of a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from mgmrn.config import LEVELS, ExperimentConfig
from mgmrn.errors import UserError
from pipeline.config.compose import ComposedConfig, load_experiment, values_of
from pipeline.config.validation import all_at_once, did_you_mean
from pipeline.config.yaml_tree import yaml_value
from pipeline.search.config import Categorical, Has, IntRange, Range, SearchedParameter, SearchFile, Subsets

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Point = Mapping[str, Any]
"""Dotted path → value, of the parameters whose conditions hold."""


class Space:
    """Parameters of a search, each after those that its conditions name; a `UserError` tells all errors of conditions, paths and values."""

    def __init__(self, search: SearchFile) -> None:
        self._search = search
        self._parameters: dict[str, SearchedParameter] = dict(search.config.space)
        if problems := list(self._wrong_conditions()):
            raise all_at_once(problems, search.label)
        self.order = self._ordered()
        if problems := list(self._outside_the_schema()):
            raise all_at_once(problems, search.label)

    def draw(self, trial: BaseTrial) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for path in self.order:
            if self._holds(path, point):
                point[path] = _draw(trial, path, self._parameters[path])
        return point

    def encoded(self, config: ExperimentConfig) -> dict[str, Any]:
        """Values of a config as the study's database holds them; values outside the space are left out."""
        weights = {f"loss.level_weights.{level}": config.loss.level_weights.get(level, 1.0) for level in LEVELS}
        values = values_of(config) | weights
        found: dict[str, Any] = {}
        for path in self.order:
            value, parameter = values.get(path), self._parameters[path]
            if isinstance(parameter, Range):
                if isinstance(value, int | float) and parameter.low <= value <= parameter.high:
                    found[path] = value
            elif path in values and value in _choices(parameter):
                found[path] = yaml_value(value)
        return found

    def compose(self, point: Point, benchmark: str | None) -> ComposedConfig:
        """Compose the experiment at a point; a `UserError` names inconsistent values."""
        values = {**self._search.config.fixed, **point}
        overrides = [f"{path}={yaml_value(value)}" for path, value in values.items()]
        origins = self._search.sources
        return load_experiment(self._search.config.base, overrides, benchmark=benchmark, origins=origins)

    def choices(self, path: str) -> tuple[Any, ...]:
        return _choices(self._parameters[path]) if path in self._parameters else ()

    def _holds(self, path: str, point: Point) -> bool:
        conditions = self._parameters[path].when.items()
        return all(parent in point and _meets(point[parent], condition) for parent, condition in conditions)

    def _wrong_conditions(self) -> Iterator[UserError]:
        fixed = self._search.config.fixed
        if "seed" in fixed:
            yield UserError("seed may not be fixed", self._search.sources["seed"], "name seeds of the search")
        for path, parameter in self._parameters.items():
            where = self._search.sources.get(path, self._search.label)
            names = [yaml_value(choice) for choice in _choices(parameter)]
            if len(set(names)) < len(names):
                yield UserError(f"the choices of {path} hold one twice", where)
            if path in fixed:
                yield UserError(f"{path} is both searched and fixed", where)
            if path == "seed":
                yield UserError("seed is no parameter of a search", where, "each trial is run with every seed of seeds")
            if path.startswith("benchmark.") and not path.startswith("benchmark.images."):
                hint = "name several data sets under benchmarks"
                yield UserError(f"{path} may not be searched: all trials are judged on the same images", where, hint)
            for parent, condition in parameter.when.items():
                if problem := self._wrong_condition(parent, condition):
                    yield UserError(f"{path} depends on {parent}{problem[0]}", where, problem[1])

    def _wrong_condition(self, parent: str, condition: tuple[Any, ...] | Has) -> tuple[str, str] | None:
        """End of the message about a condition that cannot hold, and a hint."""
        if parent not in self._parameters:
            hint = did_you_mean(parent, list(self._parameters))
            return ", which is not searched", hint or "search it too, or leave the condition out"
        choices = _choices(self._parameters[parent])
        if not choices:
            return ", which is a range", "depend on a choice"
        if isinstance(condition, Has):
            possible = any(_meets(value, condition) for value in choices)
            return None if possible else (f" with {condition.has}, which no choice has", "")
        strange = [value for value in condition if value not in choices]
        return (f" being {yaml_value(strange[0])}, which is none of its choices", "") if strange else None

    def _ordered(self) -> tuple[str, ...]:
        graph = TopologicalSorter({path: list(one.when) for path, one in self._parameters.items()})
        try:
            return tuple(graph.static_order())
        except CycleError as error:
            circle = " → ".join(error.args[1])
            raise UserError(f"conditions run in a circle: {circle}", self._search.sources[error.args[1][0]]) from error

    def _outside_the_schema(self) -> Iterator[UserError]:
        """Compose the base with each parameter at its bounds, its conditions met, and all others as in the base."""
        for benchmark in self._search.config.benchmarks or (None,):
            self.compose({}, benchmark)
        for path in self.order:
            reached = self._conditions_met(path)
            if reached is None:
                yield UserError(f"the conditions of {path} can never hold together", self._search.sources[path])
                continue
            for value in _ends(self._parameters[path]):
                point = {**reached, path: value}
                if (error := self._misfit(point)) and self._misfit(self._with_dependants(point)):
                    yield UserError(error.message, self._search.sources[path], error.hint)
                    break

    def _misfit(self, point: Point) -> UserError | None:
        try:
            self.compose(point, next(iter(self._search.config.benchmarks), None))
        except UserError as error:
            return error
        return None

    def _conditions_met(self, path: str) -> dict[str, Any] | None:
        """Point at which a parameter is searched: the first choice of each parent, and of theirs, that all conditions allow."""
        allowed: dict[str, list[Any]] = {}
        waiting = [path]
        while waiting:
            for parent, condition in self._parameters[waiting.pop()].when.items():
                if parent not in allowed:
                    waiting.append(parent)
                    allowed[parent] = list(_choices(self._parameters[parent]))
                allowed[parent] = [choice for choice in allowed[parent] if _meets(choice, condition)]
        if not all(allowed.values()):
            return None
        return {name: allowed[name][0] for name in self.order if name in allowed}

    def _with_dependants(self, point: Point) -> dict[str, Any]:
        """Point completed by the parameters that its values activate: some values are invalid without them."""
        full = dict(point)
        for path in self.order:
            if path not in full and self._parameters[path].when and self._holds(path, full):
                full[path] = _ends(self._parameters[path])[0]
        return full


def _meets(value: Any, condition: tuple[Any, ...] | Has) -> bool:
    return isinstance(value, list) and condition.has in value if isinstance(condition, Has) else value in condition


def _choices(parameter: SearchedParameter) -> tuple[Any, ...]:
    return parameter.choices if isinstance(parameter, Categorical | Subsets) else ()


def _ends(parameter: SearchedParameter) -> tuple[Any, ...]:
    return (parameter.low, parameter.high) if isinstance(parameter, Range) else _choices(parameter)


def _draw(trial: BaseTrial, path: str, parameter: SearchedParameter) -> Any:
    if isinstance(parameter, IntRange):
        return trial.suggest_int(path, parameter.low, parameter.high, log=parameter.log)
    if isinstance(parameter, Range):
        return trial.suggest_float(path, parameter.low, parameter.high, log=parameter.log)
    # Optuna stores choices of plain types alone, so lists are stored as text.
    by_name = {yaml_value(choice): choice for choice in _choices(parameter)}
    return by_name[trial.suggest_categorical(path, list(by_name))]
