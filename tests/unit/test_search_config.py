"""Searches: every mistake in a file is one sentence with its place; all that are shipped fit every benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.config.files import CONFIGS, config_names
from pipeline.errors import ExitCode, exit_code
from pipeline.search.config import SearchFile, load_search
from pipeline.search.space import Space

SEARCHES = config_names("search")
SCALE = "space:\n  loss.scale: {kind: float, low: 1, high: 2}\n"
MODE = "  model.regions.mode: {kind: categorical, choices: [none, regions]}\n"


def opened(folder: Path, text: str, base: str = "base: cub100\n") -> SearchFile:
    """Reads and checks a search as `search` does before anything starts."""
    path = folder / "x.yaml"
    path.write_text(base + text)
    search = load_search(str(path))
    Space(search)
    return search


def error_of(folder: Path, text: str, base: str = "base: cub100\n") -> UserError:
    with pytest.raises(UserError) as caught:
        opened(folder, text, base)
    assert exit_code(caught.value) == ExitCode.BAD_INPUT
    return caught.value


def space(*entries: str) -> str:
    return "space:\n" + "".join(f"  {entry}\n" for entry in entries)


def refined(mode: str, detach_when: str) -> str:
    """`detach` below `topology` below `mode`."""
    return (
        "space:\n"
        + MODE
        + f"  model.refinement.topology: {{kind: categorical, choices: [none, cascade], when: {mode}}}\n"
        f"  model.refinement.detach: {{kind: categorical, choices: [true, false], when: {detach_when}}}\n"
    )


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (SCALE + "trails: 3\n", 4, "unknown field trails", "did you mean trials?"),
        (SCALE + "objective: {metrc: h}\n", 4, "unknown field objective.metrc", "did you mean objective.metric?"),
        (
            space("loss.scale: {kind: float, low: 1, high: 2, hgih: 3}"),
            3,
            "unknown field space.loss.scale.hgih",
            "did you mean space.loss.scale.high?",
        ),
        (
            space("loss.scale: {kind: flaot, low: 1, high: 2}"),
            3,
            "space.loss.scale.kind must be one of 'categorical', 'subsets', 'int', 'float', got 'flaot'",
            "",
        ),
        (space("loss.scale: {low: 1, high: 2}"), 3, "space.loss.scale.kind is missing", ""),
        (space("loss.scale: [1, 2]"), 3, "space.loss.scale must be an object, got [1, 2]", ""),
        (SCALE + "seeds: [1, 2, 1]\n", 4, "seeds: one is given twice, got [1, 2, 1]", ""),
        (SCALE + "benchmarks: [sun, sun]\n", 4, "benchmarks: one is given twice, got ['sun', 'sun']", ""),
        (SCALE + "seeds: []\n", 4, "seeds tuple should have at least 1 item", ""),
        (SCALE + "trials: 0\n", 4, "trials must be greater than or equal to 1, got 0", ""),
        (SCALE + "confirm_seeds: 2\n", 4, "confirm_seeds must be greater than or equal to 3, got 2", ""),
        ("trials: 3\n", 1, "space is missing", ""),
        ("space: {}\n", 2, "space dictionary should have at least 1 item", ""),
    ],
)
def test_a_wrong_field(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    error = error_of(tmp_path, text)
    assert error.message.startswith(message)
    assert (error.where, error.hint) == (f"{tmp_path}/x.yaml:{line}", hint)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "loss.regression: {kind: float, low: -1, high: 1}",
            "loss.regression must be greater than or equal to 0, got -1",
        ),
        ("loss.label_smoothing: {kind: float, low: 0, high: 1}", "loss.label_smoothing must be less than 1, got 1"),
        ("model.regions.count: {kind: int, low: 1, high: 4}", "model.regions.count must be greater than or equal to 2"),
        ("model.regions.count: {kind: int, low: 4, high: 65}", "model.regions.count must be less than or equal to 64"),
        ("model.levels: {kind: subsets, of: [c4, c9]}", "model.levels.0 must be 'c2', 'c3', 'c4' or 'c5', got c9"),
        ("model.levels: {kind: subsets, of: [c5, c4]}", "model: levels must be distinct and finest first"),
        ("model.regions.mode: {kind: categorical, choices: [none, nine]}", "model.regions.mode must be 'none'"),
        ("model.width: {kind: int, low: 32, high: 100}", "model: width 100 must be a multiple of"),
        ("loss: {kind: float, low: 1, high: 2}", "loss must be an object"),
    ],
)
def test_what_the_schema_does_not_allow(tmp_path: Path, entry: str, message: str) -> None:
    error = error_of(tmp_path, space("optimiser.head_lr: {kind: float, low: 1e-4, high: 1e-3}", entry))
    assert error.message.startswith(message)
    assert error.where == f"{tmp_path}/x.yaml:4"


def test_an_unknown_path_suggests_the_nearest(tmp_path: Path) -> None:
    error = error_of(tmp_path, space("model.widht: {kind: int, low: 64, high: 128}"))
    assert str(error) == f"unknown field model.widht [{tmp_path}/x.yaml:3] (did you mean model.width?)"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "model.levels: {kind: categorical, choices: []}",
            "space.model.levels.choices tuple should have at least 1 item",
        ),
        ("model.levels: {kind: subsets, of: []}", "space.model.levels.of tuple should have at least 1 item"),
        ("model.levels: {kind: categorical, choices: [[c4], [c4]]}", "the choices of model.levels hold one twice"),
        ("model.levels: {kind: subsets, of: [c4, c4]}", "the choices of model.levels hold one twice"),
        ("loss.scale: {kind: float, low: 2, high: 2}", "space.loss.scale: low must be below high, got 2.0 and 2.0"),
        ("model.regions.count: {kind: int, low: 5, high: 4}", "space.model.regions.count: low must be below high"),
        (
            "loss.scale: {kind: float, low: 0, high: 2, log: true}",
            "space.loss.scale: a logarithmic range must be above 0",
        ),
        (
            "model.regions.count: {kind: int, low: -1, high: 2, log: true}",
            "space.model.regions.count: a logarithmic range",
        ),
        ("loss.scale: {kind: float, low: few, high: 2}", "space.loss.scale.low must be a valid number, got few"),
        ("loss.scale: {kind: float, low: .nan, high: 2}", "space.loss.scale.low must be a finite number"),
        (
            "model.regions.count: {kind: int, low: 2.5, high: 4}",
            "space.model.regions.count.low must be a valid integer",
        ),
        ("seed: {kind: int, low: 0, high: 9}", "seed is no parameter of a search"),
        (
            "benchmark.tune_seen_fraction: {kind: float, low: 0.1, high: 0.5}",
            "benchmark.tune_seen_fraction may not be searched: all trials are judged on the same images",
        ),
        ("benchmark.name: {kind: categorical, choices: [CUB, SUN]}", "benchmark.name may not be searched"),
    ],
)
def test_a_parameter_that_cannot_be_drawn(tmp_path: Path, entry: str, message: str) -> None:
    error = error_of(tmp_path, space(entry))
    assert error.message.startswith(message)
    assert error.where == f"{tmp_path}/x.yaml:3"


@pytest.mark.parametrize(
    ("condition", "message", "hint"),
    [
        (
            "{model.region.mode: [regions]}",
            "model.regions.count depends on model.region.mode, which is not searched",
            "did you mean model.regions.mode?",
        ),
        (
            "{optimiser.name: [sgd]}",
            "model.regions.count depends on optimiser.name, which is not searched",
            "search it too, or leave the condition out",
        ),
        ("{loss.scale: [1]}", "model.regions.count depends on loss.scale, which is a range", "depend on a choice"),
        (
            "{model.regions.mode: [regions, tokens]}",
            "model.regions.count depends on model.regions.mode being tokens, which is none of its choices",
            "",
        ),
        (
            "{model.regions.mode: {has: n}}",
            "model.regions.count depends on model.regions.mode with n, which no choice has",
            "",
        ),
        (
            "{model.regions.mode: regions}",
            "space.model.regions.count.when.model.regions.mode: a condition is a list of values, or {has: item}",
            "",
        ),
        (
            "{model.regions.mode: []}",
            "space.model.regions.count.when.model.regions.mode: a condition is a list of values, or {has: item}",
            "",
        ),
        (
            "{model.regions.mode: {hsa: regions}}",
            "space.model.regions.count.when.model.regions.mode: a condition is a list of values, or {has: item}",
            "",
        ),
    ],
)
def test_a_condition_that_means_nothing(tmp_path: Path, condition: str, message: str, hint: str) -> None:
    count = f"  model.regions.count: {{kind: int, low: 2, high: 4, when: {condition}}}\n"
    error = error_of(tmp_path, SCALE + MODE + count)
    assert (error.message, error.where, error.hint) == (message, f"{tmp_path}/x.yaml:5", hint)


def test_an_item_that_no_choice_has(tmp_path: Path) -> None:
    levels = "model.levels: {kind: subsets, of: [c4, c5]}"
    weight = "loss.level_weights.c3: {kind: float, low: 1, high: 2, when: {model.levels: {has: c3}}}"
    error = error_of(tmp_path, space(levels, weight))
    assert error.message == "loss.level_weights.c3 depends on model.levels with c3, which no choice has"


@pytest.mark.parametrize(
    "detach_when",
    [
        "{model.refinement.topology: [cascade], model.regions.mode: [none]}",
        "{model.regions.mode: [none], model.refinement.topology: [cascade]}",
    ],
)
def test_conditions_that_can_never_hold_together(tmp_path: Path, detach_when: str) -> None:
    error = error_of(tmp_path, refined("{model.regions.mode: [regions]}", detach_when))
    assert error.message == "the conditions of model.refinement.detach can never hold together"
    assert error.where == f"{tmp_path}/x.yaml:5"


@pytest.mark.parametrize(
    "detach_when",
    [
        "{model.refinement.topology: [cascade], model.regions.mode: [none, regions]}",
        "{model.regions.mode: [none, regions], model.refinement.topology: [none, cascade]}",
    ],
)
def test_conditions_of_which_one_narrows_the_other_hold_together(tmp_path: Path, detach_when: str) -> None:
    opened(tmp_path, refined("{model.regions.mode: [regions]}", detach_when))


def test_conditions_in_a_circle(tmp_path: Path) -> None:
    text = refined("{model.refinement.detach: [true]}", "{model.refinement.topology: [cascade]}")
    error = error_of(tmp_path, text)
    assert error.message.startswith("conditions run in a circle: model.refinement.")
    assert error.where in (f"{tmp_path}/x.yaml:4", f"{tmp_path}/x.yaml:5")


def test_a_value_that_cannot_do_without_its_dependants_is_tried_with_them(tmp_path: Path) -> None:
    stages = "model.backbone.trainable_stages: {kind: categorical, choices: [[c4], [c5]], when: {model.backbone.trainable: [stages]}}"
    parent = "model.backbone.trainable: {kind: categorical, choices: [none, stages]}"
    opened(tmp_path, "fixed: {cache_features: false}\n" + space(parent, stages))
    error = error_of(tmp_path, "fixed: {cache_features: false}\n" + space(parent))
    assert error.message.startswith("model.backbone: trainable_stages must name stages")


def test_a_parameter_that_is_searched_and_fixed(tmp_path: Path) -> None:
    error = error_of(tmp_path, "fixed:\n  loss.scale: 3\n" + SCALE)
    assert (error.message, error.where) == ("loss.scale is both searched and fixed", f"{tmp_path}/x.yaml:3")


@pytest.mark.parametrize(
    ("fixed", "message", "hint"),
    [
        ("loss.regression: -1", "loss.regression must be greater than or equal to 0, got -1", ""),
        ("loss.regresion: 1", "unknown field loss.regresion", "did you mean loss.regression?"),
    ],
)
def test_a_wrong_fixed_value_is_found_where_it_is_written(tmp_path: Path, fixed: str, message: str, hint: str) -> None:
    error = error_of(tmp_path, f"fixed:\n  model.width: 64\n  {fixed}\n" + SCALE)
    assert (error.message, error.where, error.hint) == (message, f"{tmp_path}/x.yaml:4", hint)


@pytest.mark.parametrize("metric", ["test/gzsl_h", "test_ausuc", "test/ausuc"])
def test_an_objective_on_the_test_set(tmp_path: Path, metric: str) -> None:
    error = error_of(tmp_path, SCALE + f"objective:\n  metric: {metric}\n")
    assert "a search may not read the test set" in error.message and metric in error.message
    assert error.where == f"{tmp_path}/x.yaml:5"


def test_rules_across_fields_come_together(tmp_path: Path) -> None:
    text = SCALE + "objective: {cost: step_ms}\n"
    early, cmaes = "allow no early stopping: set scheduler.name: none", "cmaes knows one objective"
    assert early in error_of(tmp_path, text).message
    assert cmaes in error_of(tmp_path, text + "sampler: {name: cmaes}\nscheduler: {name: none}\n").message
    both = error_of(tmp_path, text + "sampler: {name: cmaes}\n").message
    assert early in both and cmaes in both
    opened(tmp_path, text + "sampler: {name: nsga2}\nscheduler: {name: none}\n")


def test_unknown_base_and_benchmarks_suggest_the_nearest(tmp_path: Path) -> None:
    error = error_of(tmp_path, SCALE + "benchmarks: [sun, cubs]\n", base="base: cub10\n")
    assert error.message.startswith(f"2 errors in {tmp_path}/x.yaml:")
    assert f"there is no experiment 'cub10' [{tmp_path}/x.yaml:1] (did you mean cub100?" in error.message
    assert f"there is no benchmark 'cubs' [{tmp_path}/x.yaml:4] (did you mean cub?" in error.message


def test_an_unknown_search_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError, match="there is no search 'synthetic-quik'") as caught:
        load_search("synthetic-quik")
    assert "did you mean synthetic-quick?" in caught.value.hint
    assert all(name in caught.value.hint for name in SEARCHES)


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    text = (
        "trails: 2\nspace:\n  loss.scale: {kind: float, low: 3, high: 2}\n"
        "  model.levels: {kind: categorical, choices: []}\nobjective: {metric: test/x}\nseeds: [1, 1]\n"
    )
    lines = error_of(tmp_path, text).message.splitlines()
    assert lines[0] == f"5 errors in {tmp_path}/x.yaml:"
    places = {int(found) for line in lines[1:] for found in re.findall(r"x\.yaml:(\d+)\]", line)}
    assert places == {2, 4, 5, 6, 7}


def test_several_wrong_parameters_are_told_together(tmp_path: Path) -> None:
    outside = space("loss.scal: {kind: float, low: 3, high: 4}", "model.width: {kind: int, low: 1, high: 64}")
    lines = error_of(tmp_path, outside).message.splitlines()
    assert len(lines) == 3 and "x.yaml:3]" in lines[1] and "x.yaml:4]" in lines[2]
    conditions = space(
        "loss.scale: {kind: float, low: 3, high: 4, when: {a: [1]}}",
        "model.width: {kind: categorical, choices: [64, 64], when: {b: [1]}}",
    )
    assert len(error_of(tmp_path, conditions).message.splitlines()) == 4


@pytest.mark.parametrize("name", SEARCHES)
def test_every_shipped_search_fits_its_base_on_every_benchmark(name: str) -> None:
    search = load_search(name)
    drawn = Space(search)
    for benchmark in config_names("benchmark"):
        assert drawn.compose({}, benchmark).config.benchmark.name


@pytest.mark.parametrize("name", SEARCHES)
def test_every_shipped_search_says_what_it_is_for(name: str) -> None:
    text = (CONFIGS / "search" / f"{name}.yaml").read_text()
    header = text[: text.index("base:")]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("# Question:", "# Cost:", "# Command:", f"search {name}"):
        assert word in header
