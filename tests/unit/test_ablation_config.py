"""Ablation files: every mistake is one sentence with its line; what a file says of itself is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.ablation.config import AblationFile, load_ablation, with_benchmarks
from pipeline.config.files import config_names
from pipeline.errors import ExitCode, exit_code

SCALE = "variants:\n  low: {loss.scale: 10}\n"
FACTORS = "factors:\n  scale:\n    low: {loss.scale: 10}\n    high: {loss.scale: 40}\n"


def opened(folder: Path, text: str, base: str = "base: cub100\n") -> AblationFile:
    path = folder / "x.yaml"
    path.write_text(base + text)
    return load_ablation(str(path))


def error_of(folder: Path, text: str, base: str = "base: cub100\n") -> UserError:
    with pytest.raises(UserError) as caught:
        opened(folder, text, base)
    assert exit_code(caught.value) == ExitCode.BAD_INPUT
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (SCALE + "sedes: [1]\n", 4, "unknown field sedes", "did you mean seeds?"),
        (SCALE + "  low: {loss.scale: 20}\n", 4, "the field low is given twice", ""),
        (SCALE + "seeds: []\n", 4, "seeds tuple should have at least 1 item", ""),
        (SCALE + "seeds: [2, 0, 2]\n", 4, "seeds: one is given twice, got [2, 0, 2]", ""),
        (SCALE + "seeds: [0, -1]\n", 4, "seeds.1 must be greater than or equal to 0, got -1", ""),
        (SCALE + "benchmarks: [cub, cub]\n", 4, "benchmarks: one is given twice, got ['cub', 'cub']", ""),
        (SCALE + "mode: gird\n", 4, "mode must be 'one_at_a_time', 'grid' or 'list', got gird", ""),
        (SCALE + "split: final\n", 4, "split must be 'protocol' or 'tune', got final", ""),
        (SCALE + "primary: accuracy\n", 4, "primary: 'accuracy' is no figure: name one of zsl_t1, gzsl_u", ""),
        (SCALE + "budget_hours: 0\n", 4, "budget_hours must be greater than 0, got 0", ""),
        (SCALE + "workers: 0\n", 4, "workers must be greater than or equal to 1, got 0", ""),
        (SCALE + "base_name: the base\n", 4, "base_name: 'the base' cannot name a variant: use letters", ""),
        (SCALE + "  low+high: {}\n", 4, "variants.low+high: 'low+high' cannot name a variant", ""),
        (SCALE + "  high: 40\n", 4, "variants.high must be an object, got 40", ""),
        (SCALE + "  high: {loss: {scale: 40}}\n", 4, "variants.high.loss: a mapping overrides nothing", ""),
        (SCALE + "fixed: {loss: {scale: 4}}\n", 4, "fixed.loss: a mapping overrides nothing", ""),
        (FACTORS + "    v.high: {}\nmode: grid\n", 6, "factors.scale.v.high: 'v.high' cannot name a variant", ""),
        (FACTORS + "  other: {}\nmode: grid\n", 6, "factors.other dictionary should have at least 1 item", ""),
        ("mode: list\n" + SCALE, 4, "a list needs two variants to compare", ""),
        ("mode: list\n", 2, "mode list needs variants", ""),
        ("mode: grid\n", 2, "mode grid needs factors", ""),
        (FACTORS + SCALE, 3, "mode one_at_a_time has variants and no factors", ""),
    ],
)
def test_a_wrong_field(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    error = error_of(tmp_path, text)
    assert error.message.startswith(message)
    assert (error.where, error.hint) == (f"{tmp_path}/x.yaml:{line}", hint)


def test_what_is_missing_has_the_file_for_its_place(tmp_path: Path) -> None:
    error = error_of(tmp_path, "seeds: [0]\n")
    assert (error.message, error.where) == ("mode one_at_a_time needs variants", f"{tmp_path}/x.yaml")
    assert error_of(tmp_path, SCALE, base="").message == "base is missing"


def test_what_is_no_mapping(tmp_path: Path) -> None:
    assert error_of(tmp_path, "", base="- cub100\n").message == "a config must be a mapping of fields to values"
    assert error_of(tmp_path, "variants: {a: [\n").message.startswith("not valid YAML")


def test_variants_in_a_grid_and_a_grid_without_factors_are_two_mistakes(tmp_path: Path) -> None:
    lines = error_of(tmp_path, "mode: grid\n" + SCALE).message.splitlines()
    assert lines == [
        f"2 errors in {tmp_path}/x.yaml:",
        f"  mode grid has factors and no variants [{tmp_path}/x.yaml:4]",
        f"  mode grid needs factors [{tmp_path}/x.yaml:2]",
    ]


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    text = "seed: 3\nvariants:\n  a b: {loss.scale: 1}\n  c: {loss: {scale: 3}}\nprimary: x\nseeds: [1, 1]\n"
    lines = error_of(tmp_path, text).message.splitlines()
    assert lines[0] == f"5 errors in {tmp_path}/x.yaml:"
    places = [int(line.rpartition("x.yaml:")[2].split("]")[0]) for line in lines[1:]]
    assert sorted(places) == [2, 4, 5, 6, 7]


def test_unknown_base_and_benchmarks_suggest_the_nearest(tmp_path: Path) -> None:
    error = error_of(tmp_path, SCALE + "benchmarks: [sun, cubs]\n", base="base: cub10\n")
    assert error.message.startswith(f"2 errors in {tmp_path}/x.yaml:")
    assert f"there is no experiment 'cub10' [{tmp_path}/x.yaml:1] (did you mean cub100?" in error.message
    assert f"there is no benchmark 'cubs' [{tmp_path}/x.yaml:4] (did you mean cub?" in error.message


def test_an_unknown_ablation_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError, match="there is no ablation 'component'") as caught:
        load_ablation("component")
    assert "did you mean components?" in caught.value.hint
    assert all(name in caught.value.hint for name in config_names("ablation"))


def test_an_ablation_is_named_with_or_without_its_group() -> None:
    assert load_ablation("ablation/components") == load_ablation("components")


def test_a_file_in_a_folder_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ablation").mkdir()
    Path("ablation/mine.yaml").write_text("base: cub100\n" + SCALE)
    assert load_ablation("ablation/mine.yaml").name == "mine"
    with pytest.raises(UserError, match="does not exist"):
        load_ablation("ablation/yours.yaml")


def test_the_question_is_the_comment_at_the_head(tmp_path: Path) -> None:
    file = opened(tmp_path, "# no part of it\n" + SCALE, base="# Question: which?\n# Cost: none.\nbase: cub100\n")
    assert (file.name, file.label, file.question) == ("x", f"{tmp_path}/x.yaml", "Question: which?\nCost: none.")


def test_what_is_not_said(tmp_path: Path) -> None:
    config = opened(tmp_path, SCALE).config
    assert (config.mode, config.base_name, config.seeds, config.split) == (
        "one_at_a_time",
        "base",
        (0, 1, 2),
        "protocol",
    )
    assert (config.benchmarks, config.budget_hours, config.workers) == ((), None, 1)


def test_values_keep_their_types(tmp_path: Path) -> None:
    config = opened(tmp_path, "fixed: {a: 1, b: 1.5, c: true, d: x, e: null, f: [c4, c5], g: 5e-4}\n" + SCALE).config
    assert config.fixed == {"a": 1, "b": 1.5, "c": True, "d": "x", "e": None, "f": ["c4", "c5"], "g": 0.0005}
    assert [type(config.fixed[path]) for path in "abc"] == [int, float, bool]


def test_another_file_is_built_upon(tmp_path: Path) -> None:
    opened(tmp_path, SCALE + "seeds: [4]\n")
    (tmp_path / "y.yaml").write_text("extends: ./x.yaml\nvariants:\n  high: {loss.scale: 40}\n")
    file = load_ablation(str(tmp_path / "y.yaml"))
    assert (list(file.config.variants), file.config.seeds) == (["low", "high"], (4,))
    assert file.place("variants", "low") == f"{tmp_path}/x.yaml:3"


def test_other_benchmarks_take_the_place_of_those_that_the_file_names(tmp_path: Path) -> None:
    file = opened(tmp_path, SCALE + "benchmarks: [sun]\n")
    changed = with_benchmarks(file, ("cub", "awa2"))
    assert changed.config.benchmarks == ("cub", "awa2")
    assert (changed.name, changed.config.variants) == (file.name, file.config.variants)
    assert file.config.benchmarks == ("sun",)


def test_benchmarks_on_the_command_line_that_do_not_exist_or_repeat(tmp_path: Path) -> None:
    file = opened(tmp_path, SCALE)
    with pytest.raises(UserError, match="there is no benchmark 'cup'") as caught:
        with_benchmarks(file, ("sun", "cup"))
    assert caught.value.where == "--benchmarks" and "did you mean cub?" in caught.value.hint
    with pytest.raises(UserError, match="a benchmark is given twice: cub, cub") as caught:
        with_benchmarks(file, ("cub", "cub"))
    assert caught.value.where == "--benchmarks"
