"""Values and configs can be written as YAML and as overrides and read again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgmrn.config import BenchmarkConfig, ExperimentConfig, LossConfig
from pipeline.config.compose import ComposedConfig, diff, load_experiment, show, values_of
from pipeline.config.files import config_names
from pipeline.config.identity import config_hash, group_hash
from pipeline.config.yaml_tree import parse_yaml, plain, yaml_value

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])) | st.sampled_from(
    ["5E4", "0E0", "null", "#: x", "true", "1_000", "010", "0o7", "1:30", "0x1p3", "no", "-.5", "2026-01-01", "<<", "="]
)
SCALAR = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)


@given(SCALAR | st.lists(SCALAR, max_size=3))
def test_a_value_keeps_its_type_and_digits(value: object) -> None:
    again = plain(parse_yaml(yaml_value(value), "--set", line_numbers=False))
    assert (again, type(again)) == (value, type(value))


def composed_again(config: ExperimentConfig, folder: Path, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """A config written as YAML, overridden and read."""
    path = folder / "shown.yaml"
    path.write_text(show(ComposedConfig("x", config, {})), encoding="utf-8")
    return load_experiment(str(path), overrides).config


SHIPPED = {name: load_experiment(name, ["model.backbone.weights=none"]).config for name in config_names("experiment")}
SHIPPED["numerals"] = ExperimentConfig(
    benchmark=BenchmarkConfig(name="5E4", word_vectors="0E0"), loss=LossConfig(scale=1e-300, level_weights={"c4": 0.0})
)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_survives_yaml_and_overrides_turn_another_config_into_it(name: str, tmp_path: Path) -> None:
    config = SHIPPED[name]
    again = composed_again(config, tmp_path)
    assert again == config and diff(again, config) == {}
    assert config_hash(again, "data") == config_hash(config, "data") != config_hash(config, "other data")
    reseeded = config.model_copy(update={"seed": config.seed + 1})
    assert config_hash(reseeded, "data") != config_hash(config, "data")
    assert group_hash(reseeded, "data") == group_hash(config, "data")
    uncached = config.model_copy(update={"cache_features": not config.cache_features})
    assert group_hash(uncached, "data") != group_hash(config, "data")
    overrides = [f"{path}={yaml_value(value)}" for path, value in values_of(config).items()]
    overrides.sort(key=lambda one: ".kind=" not in one)  # A kind comes before its fields.
    for other in ("cub-released", "synthetic-eszsl"):
        assert composed_again(SHIPPED[other], tmp_path, tuple(overrides)) == config


def test_different_configs_have_different_hashes() -> None:
    assert len({config_hash(config, "data") for config in SHIPPED.values()}) == len(SHIPPED)
