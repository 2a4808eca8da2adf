"""Ablation files: every mistake is one sentence with its line."""

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
        (SCALE + "seeds: [2, 0, 2]\n", 4, "seeds: one is given twice, got [2, 0, 2]", ""),
        (SCALE + "mode: gird\n", 4, "mode must be 'one_at_a_time', 'grid' or 'list', got gird", ""),
        (SCALE + "primary: accuracy\n", 4, "primary: 'accuracy' is no figure: name one of zsl_t1, gzsl_u", ""),
        (SCALE + "budget_hours: 0\n", 4, "budget_hours must be greater than 0, got 0", ""),
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


def test_a_missing_field_has_the_file_for_its_place(tmp_path: Path) -> None:
    error = error_of(tmp_path, "seeds: [0]\n")
    assert (error.message, error.where) == ("mode one_at_a_time needs variants", f"{tmp_path}/x.yaml")
    assert error_of(tmp_path, SCALE, base="").message == "base is missing"


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = "seed: 3\nvariants:\n  a b: {loss.scale: 1}\n  c: {loss: {scale: 3}}\nprimary: x\nseeds: [1, 1]\n"
    for wrong, numbers in ((text, [2, 4, 5, 6, 7]), ("mode: grid\n" + SCALE, [2, 4])):
        first, *lines = error_of(tmp_path, wrong).message.splitlines()
        assert first == f"{len(numbers)} errors in {tmp_path}/x.yaml:"
        assert sorted(int(line.rpartition("x.yaml:")[2].split("]")[0]) for line in lines) == numbers


def test_unknown_files_suggest_the_nearest(tmp_path: Path) -> None:
    error = error_of(tmp_path, SCALE + "benchmarks: [sun, cubs]\n", base="base: cub10\n")
    assert error.message.startswith(f"2 errors in {tmp_path}/x.yaml:")
    assert f"there is no experiment 'cub10' [{tmp_path}/x.yaml:1] (did you mean cub100?" in error.message
    assert f"there is no benchmark 'cubs' [{tmp_path}/x.yaml:4] (did you mean cub?" in error.message
    with pytest.raises(UserError, match="there is no ablation 'component'") as caught:
        load_ablation("component")
    assert "did you mean components?" in caught.value.hint
    assert all(name in caught.value.hint for name in config_names("ablation"))


def test_an_ablation_is_named_with_or_without_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_ablation("ablation/components") == load_ablation("components")
    monkeypatch.chdir(tmp_path)
    Path("ablation").mkdir()
    Path("ablation/mine.yaml").write_text("base: cub100\n" + SCALE)
    assert load_ablation("ablation/mine.yaml").name == "mine", "a file in a folder of that name"


def test_the_question_is_the_comment_at_the_head(tmp_path: Path) -> None:
    file = opened(tmp_path, "# no part of it\n" + SCALE, base="# Question: which?\n# Cost: none.\nbase: cub100\n")
    assert (file.name, file.label, file.question) == ("x", f"{tmp_path}/x.yaml", "Question: which?\nCost: none.")


def test_values_keep_their_types(tmp_path: Path) -> None:
    config = opened(tmp_path, "fixed: {a: 1, b: 1.5, c: true, d: x, e: null, f: [c4, c5], g: 5e-4}\n" + SCALE).config
    assert config.fixed == {"a": 1, "b": 1.5, "c": True, "d": "x", "e": None, "f": ["c4", "c5"], "g": 0.0005}
    assert [type(config.fixed[path]) for path in "abc"] == [int, float, bool]


def test_a_file_can_extend_another_one(tmp_path: Path) -> None:
    opened(tmp_path, SCALE + "seeds: [4]\n")
    (tmp_path / "y.yaml").write_text("extends: ./x.yaml\nvariants:\n  high: {loss.scale: 40}\n")
    file = load_ablation(str(tmp_path / "y.yaml"))
    assert (list(file.config.variants), file.config.seeds) == (["low", "high"], (4,))
    assert file.place("variants", "low") == f"{tmp_path}/x.yaml:3"


def test_benchmarks_on_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    file = opened(tmp_path, SCALE + "benchmarks: [sun]\n")
    changed = with_benchmarks(file, ("cub", "awa2"))
    assert changed.config.benchmarks == ("cub", "awa2") and changed.config.variants == file.config.variants
    for names, message in ((("sun", "cup"), "there is no benchmark 'cup'"), (("cub", "cub"), "given twice: cub, cub")):
        with pytest.raises(UserError, match=message) as caught:
            with_benchmarks(file, names)
        assert caught.value.where == "--benchmarks"
