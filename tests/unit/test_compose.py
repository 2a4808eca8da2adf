"""Composition of configs: merging, origins, and every mistake in one report."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmrn.config import ESZSLConfig
from mgmrn.errors import UserError
from pipeline.config.compose import diff, load_benchmark_config, load_experiment, resolve_weights, show, values_of


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def error_of(*arguments: object) -> UserError:
    with pytest.raises(UserError) as caught:
        load_experiment(*arguments)  # type: ignore[arg-type]
    return caught.value


def test_own_keys_win_over_parents_and_later_parents_over_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "benchmark: {name: A, word_vectors: WA}\nloss: {scale: 1, regression: 1}\nseed: 1\n")
    write(tmp_path / "b.yaml", "loss:\n  scale: 2\nseed: 2\n")
    child = write(tmp_path / "c.yaml", "extends: [./a.yaml, ./b.yaml]\nseed: 3\n")
    composed = load_experiment(child, ["loss.label_smoothing=0.1"])
    config = composed.config
    assert (config.benchmark.name, config.benchmark.word_vectors) == ("A", "WA")
    assert (config.loss.scale, config.loss.regression, config.loss.label_smoothing, config.seed) == (2, 1, 0.1, 3)
    assert composed.provenance["loss.scale"] == f"{tmp_path / 'b.yaml'}:2"
    assert composed.provenance["seed"] == f"{child}:2"
    assert composed.provenance["loss.label_smoothing"] == "--set"
    assert composed.provenance["optimiser.name"] == "default"
    assert composed.provenance.keys() == values_of(config).keys()


def test_an_exponent_without_a_dot_is_a_number_and_a_missing_kind_the_default(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "benchmark: {name: X}\noptimiser: {head_lr: 5e-4}\nsampling: {batch: 8}\n")
    config = load_experiment(path, ["optimiser.weight_decay=1e-5", "optimiser.backbone_lr=+2E-3"]).config
    assert (config.optimiser.head_lr, config.optimiser.weight_decay, config.optimiser.backbone_lr) == (5e-4, 1e-5, 2e-3)
    assert config.sampling.kind == "plain"


def test_another_kind_keeps_the_fields_of_both_kinds() -> None:
    config = load_experiment("cub100", ["model.kind=eszsl"]).config
    assert isinstance(config.model, ESZSLConfig)
    assert config.model.backbone == load_experiment("cub100").config.model.backbone


def test_all_errors_come_at_once_each_with_field_place_value_and_bound(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.yaml",
        "benchmark: {name: X}\nmodel:\n  widht: 64\n  levels: [c4, c9]\n"
        "schedule:\n  epochs: 0\noptimiser: {head_lr: fast}\n",
    )
    error = error_of(path, ["optimiser.lr=1e-3", "loss.scale=-1", "nonsense"])
    lines = error.message.splitlines()
    assert lines[0] == f"7 errors in {path}:"
    for fragment in (
        f"unknown field model.widht [{path}:3] (did you mean model.width?)",
        f"model.levels.1 must be 'c2', 'c3', 'c4' or 'c5', got c9 [{path}:4]",
        f"schedule.epochs must be greater than or equal to 1, got 0 [{path}:6]",
        f"optimiser.head_lr must be a valid number, got fast [{path}:7]",
        "unknown field optimiser.lr [--set] (did you mean optimiser.head_lr?)",
        "loss.scale must be greater than 0, got -1 [--set]",
        "'nonsense' is not an override [--set] (write --set section.field=value)",
    ):
        assert f"  {fragment}" in lines


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("modle.width=64", "unknown field modle", "did you mean model?"),
        ("learning_rate=x", "unknown field learning_rate", "did you mean schedule.learning_rate?"),
        ("model.kind=vit", "model.kind must be one of 'mgmrn', 'attribute_network', 'eszsl', got 'vit'", ""),
        ("model.width=100", "model: width 100 must be a multiple of granularity.group_norm_groups 32", ""),
        ("seed='3'", "seed must be a valid integer, got '3'", ""),
        ("cache_features=1", "cache_features must be a valid boolean, got 1", ""),
    ],
)
def test_a_single_error_names_place_and_hint_on_their_own(override: str, message: str, hint: str) -> None:
    error = error_of("cub100", [override])
    assert (error.message[: len(message)], error.where, error.hint) == (message, "--set", hint)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("seed: !!python/object/apply:os.system [true]\n", "is not allowed", 1),
        ("seed: 1\nmodel: !custom {}\n", "the tag !custom is not allowed", 2),
        ("a: &x 1\nb: *x\n", "anchors and aliases are not allowed", 2),
        ("seed: 1\nseed: 2\n", "the field seed is given twice", 2),
        ("seed: [1\n", "not valid YAML", 2),
        ("- 1\n- 2\n", "a config must be a mapping", 1),
        ("seed: 2026-01-01\n", "is neither a number, text", 1),
        ("extends: [no/such]\n", "extends names 'no/such', which does not exist", 1),
        ("extends: {a: 1}\n", "extends must be a name or a list of names", 1),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str, line: int) -> None:
    path = write(tmp_path / "x.yaml", text)
    error = error_of(path)
    assert message in error.message and error.where == f"{path}:{line}"


def test_a_circle_of_parents_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: ./b.yaml\n")
    assert "extends runs in a circle" in error_of(write(tmp_path / "b.yaml", "extends: ./a.yaml\n")).message


def test_a_benchmark_is_read_from_its_own_file_or_from_an_experiment(tmp_path: Path) -> None:
    assert load_benchmark_config("cub100").word_vectors == "CUB"
    assert load_benchmark_config(write(tmp_path / "x.yaml", "extends: experiment/sun\n")).name == "SUN"
    with pytest.raises(UserError, match=r"there is no benchmark 'cubs' \(did you mean cub\? there are awa2, "):
        load_benchmark_config("cubs")


def test_diff_names_the_values_that_differ_and_show_their_origins() -> None:
    first = load_experiment("cub100").config
    second = load_experiment("cub100", ["seed=7", "loss.scale=25"])
    assert diff(first, second.config) == {"loss.scale": (first.loss.scale, 25.0), "seed": (0, 7)}
    lines = show(second).splitlines()
    for path, source in second.provenance.items():
        assert any(path.rpartition(".")[2] + ":" in line and line.endswith(f"# {source}") for line in lines)


def test_a_relative_weights_path_is_looked_for_below_the_data_root(tmp_path: Path) -> None:
    config = load_experiment("cub100").config
    weights = tmp_path / config.model.backbone.weights
    with pytest.raises(UserError, match="does not exist"):
        resolve_weights(config, tmp_path)
    weights.parent.mkdir()
    weights.write_bytes(b"")
    assert resolve_weights(config, tmp_path).model.backbone.weights == str(weights.resolve())
    named = load_experiment("cub").config
    assert resolve_weights(named, tmp_path) == named
