"""Spaces: conditions decide which parameters are drawn, and a drawn point composes or is refused with a reason."""

import functools
from typing import Any

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.errors import UserError
from pipeline.config.compose import values_of
from pipeline.config.files import config_names
from pipeline.config.yaml_tree import yaml_value
from pipeline.search.config import (
    Categorical,
    FloatRange,
    Has,
    IntRange,
    SearchConfig,
    SearchFile,
    Subsets,
    load_search,
)
from pipeline.search.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)
SEARCHES = config_names("search")
seeds = st.integers(0, 2**32 - 1)
shipped = st.sampled_from(SEARCHES)


@functools.cache
def opened(name: str) -> tuple[SearchFile, Space]:
    search = load_search(name)
    return search, Space(search)


def drawn(space: Space, seed: int, count: int = 1) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [space.draw(study.ask()) for _ in range(count)]


def holds(search: SearchConfig, path: str, point: dict[str, Any]) -> bool:
    """Whether a parameter is drawn: where all its parents are, with a value that is allowed."""
    return all(
        parent in point
        and (condition.has in point[parent] if isinstance(condition, Has) else point[parent] in list(condition))
        for parent, condition in search.space[path].when.items()
    )


@given(shipped, seeds)
@settings(max_examples=12)
def test_a_drawn_point_has_the_parameters_whose_conditions_hold_with_values_of_the_file(name: str, seed: int) -> None:
    search, space = opened(name)
    points = drawn(space, seed, count=3)
    assert points == drawn(space, seed, count=3) != drawn(space, seed ^ 1, count=3)
    for point in points:
        assert point.keys() == {path for path in search.config.space if holds(search.config, path, point)}
        for path, value in point.items():
            match search.config.space[path]:
                case IntRange(low=low, high=high):
                    assert type(value) is int and low <= value <= high
                case FloatRange(low=low, high=high):
                    assert type(value) is float and low <= value <= high
                case Categorical(choices=choices) | Subsets(choices=choices):
                    assert any(type(value) is type(choice) and value == choice for choice in choices)
        ranges = {path for path, one in search.config.space.items() if isinstance(one, IntRange | FloatRange)}
        encoded = {path: value if path in ranges else yaml_value(value) for path, value in point.items()}
        assert space.draw(optuna.trial.FixedTrial(encoded)) == point


@given(shipped, seeds, st.data())
@settings(max_examples=12)
def test_every_drawn_point_composes_or_is_refused_with_a_reason(name: str, seed: int, data: st.DataObject) -> None:
    search, space = opened(name)
    benchmark = data.draw(st.sampled_from(search.config.benchmarks or (None, *config_names("benchmark"))))
    (point,) = drawn(space, seed)
    try:
        composed = space.compose(point, benchmark)
    except UserError as error:
        assert error.message
        return
    found = values_of(composed.config)
    for path, value in point.items():
        assert found[path] == value
        assert composed.provenance[path] == search.sources[path]


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=6, unique=True))
def test_subsets_are_all_but_the_empty_one_small_ones_first_in_the_given_order(names: list[str]) -> None:
    choices = Subsets(of=tuple(names)).choices
    assert len(choices) == len({tuple(choice) for choice in choices}) == 2 ** len(names) - 1
    assert [len(choice) for choice in choices] == sorted(len(choice) for choice in choices)
    for choice in choices:
        assert choice == sorted(choice, key=names.index)
