"""Search files: every mistake is one sentence with its place; shipped searches fit every benchmark."""

from pathlib import Path

import pytest
import yaml
from optuna.trial import FixedTrial

from mgmrn.errors import UserError
from pipeline.config.compose import diff
from pipeline.config.files import CONFIGS, config_names
from pipeline.search.config import SearchFile, load_search
from pipeline.search.space import Space

SEARCHES = config_names("search")
SCALE = "space:\n  loss.scale: {kind: float, low: 1, high: 2}\n"
MODE = "  model.regions.mode: {kind: categorical, choices: [none, regions]}\n"


def opened(folder: Path, text: str, base: str = "base: cub100\n") -> SearchFile:
    """Read and check a search as `search` does before anything starts."""
    path = folder / "x.yaml"
    path.write_text(base + text)
    search = load_search(str(path))
    Space(search)
    return search


def error_of(folder: Path, text: str, base: str = "base: cub100\n") -> UserError:
    with pytest.raises(UserError) as caught:
        opened(folder, text, base)
    return caught.value


def space(*entries: str) -> str:
    return "space:\n" + "".join(f"  {entry}\n" for entry in entries)


def refined(mode: str, detach_when: str) -> str:
    """`detach` below `topology` below `mode`."""
    topology = f"model.refinement.topology: {{kind: categorical, choices: [none, cascade], when: {mode}}}"
    detach = f"model.refinement.detach: {{kind: categorical, choices: [true, false], when: {detach_when}}}"
    return space(MODE.strip(), topology, detach)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (SCALE + "trails: 3\n", 4, "unknown field trails", "did you mean trials?"),
        (SCALE + "objective: {metrc: h}\n", 4, "unknown field objective.metrc", "did you mean objective.metric?"),
        (SCALE + "seeds: [1, 2, 1]\n", 4, "seeds: one is given twice, got [1, 2, 1]", ""),
        (SCALE + "confirm_seeds: 2\n", 4, "confirm_seeds must be greater than or equal to 3, got 2", ""),
        ("trials: 3\n", 1, "space is missing", ""),
        ("fixed: {loss.scale: 3}\n" + SCALE, 2, "loss.scale is both searched and fixed", ""),
        ("fixed: {loss.regression: -1}\n" + SCALE, 2, "loss.regression must be greater than or equal to 0, got -1", ""),
        ("fixed: {loss.regresion: 1}\n" + SCALE, 2, "unknown field loss.regresion", "did you mean loss.regression?"),
        (SCALE + "objective: {metric: test/gzsl_h}\n", 4, "objective.metric: a search may not read the test set", ""),
    ],
)
def test_a_wrong_field(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    error = error_of(tmp_path, text)
    assert error.message.startswith(message)
    assert (error.where, error.hint) == (f"{tmp_path}/x.yaml:{line}", hint)


NUMBER = "optimiser.head_lr: {kind: float, low: 1e-4, high: 1e-3}"
MISTAKES = yaml.safe_load(Path(__file__).with_name("search_mistakes.yaml").read_text())


@pytest.mark.parametrize(("entry", "message"), MISTAKES["parameters"].items())
def test_a_wrong_parameter(tmp_path: Path, entry: str, message: str) -> None:
    error = error_of(tmp_path, space(NUMBER, entry))
    assert error.message.startswith(message)
    assert error.where == f"{tmp_path}/x.yaml:4"


@pytest.mark.parametrize(("condition", "sentence"), MISTAKES["conditions"].items())
def test_a_condition_that_cannot_hold(tmp_path: Path, condition: str, sentence: str) -> None:
    count = f"  model.regions.count: {{kind: int, low: 2, high: 4, when: {condition}}}\n"
    error = error_of(tmp_path, SCALE + MODE + count)
    assert (f"{error.message} ({error.hint})" if error.hint else error.message) == sentence
    assert error.where == f"{tmp_path}/x.yaml:5"


def test_conditions_hold_together_only_where_one_narrows_the_other(tmp_path: Path) -> None:
    first = "{model.regions.mode: [regions]}"
    never = "{model.refinement.topology: [cascade], model.regions.mode: [none]}"
    error = error_of(tmp_path, refined(first, never))
    assert error.message == "the conditions of model.refinement.detach can never hold together"
    assert error.where == f"{tmp_path}/x.yaml:5"
    opened(tmp_path, refined(first, "{model.refinement.topology: [cascade], model.regions.mode: [none, regions]}"))
    circle = error_of(tmp_path, refined("{model.refinement.detach: [true]}", "{model.refinement.topology: [cascade]}"))
    assert circle.message.startswith("conditions run in a circle: model.refinement.")


def test_a_value_that_is_invalid_without_its_dependants_is_tried_with_them(tmp_path: Path) -> None:
    when = "{model.backbone.trainable: [stages]}"
    stages = f"model.backbone.trainable_stages: {{kind: categorical, choices: [[c4], [c5]], when: {when}}}"
    parent = "model.backbone.trainable: {kind: categorical, choices: [none, stages]}"
    opened(tmp_path, "fixed: {cache_features: false}\n" + space(parent, stages))
    error = error_of(tmp_path, "fixed: {cache_features: false}\n" + space(parent))
    assert error.message.startswith("model.backbone: trainable_stages must name stages")


def test_rules_across_fields_come_together(tmp_path: Path) -> None:
    text = SCALE + "objective: {cost: step_ms}\n"
    message = error_of(tmp_path, text + "sampler: {name: cmaes}\n").message
    assert "allow no early stopping: set scheduler.name: none" in message and "cmaes takes one objective" in message
    opened(tmp_path, text + "sampler: {name: nsga2}\nscheduler: {name: none}\n")


def test_unknown_files_suggest_the_nearest(tmp_path: Path) -> None:
    error = error_of(tmp_path, SCALE + "benchmarks: [sun, cubs]\n", base="base: cub10\n")
    assert error.message.startswith(f"2 errors in {tmp_path}/x.yaml:")
    assert f"there is no experiment 'cub10' [{tmp_path}/x.yaml:1] (did you mean cub100?" in error.message
    assert f"there is no benchmark 'cubs' [{tmp_path}/x.yaml:4] (did you mean cub?" in error.message


@pytest.mark.parametrize("name", ["cub100", "cub100-quick", "synthetic-quick"])
def test_the_point_of_the_base_is_the_base(name: str) -> None:
    """Otherwise a search that finds nothing better would compare the base with itself."""
    searched = Space(load_search(name))
    base = searched.compose({}, None)
    point = searched.draw(FixedTrial(searched.encoded(base.config)))
    assert diff(base.config, searched.compose(point, None).config) == {}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_shipped_search_fits_every_benchmark_and_states_its_purpose(name: str) -> None:
    drawn = Space(load_search(name))
    for benchmark in config_names("benchmark"):
        assert drawn.compose({}, benchmark).config.benchmark.name
    text = (CONFIGS / "search" / f"{name}.yaml").read_text()
    header = text[: text.index("base:")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert all(word in header for word in ("# Question:", "# Cost:", "# Command:", f"search {name}"))
