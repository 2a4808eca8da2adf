"""Every config survives the way through YAML, and every shipped one loads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mgmrn.config import (
    BenchmarkConfig,
    DecoderConfig,
    EpisodicSampling,
    ESZSLConfig,
    ExperimentConfig,
    LossConfig,
    MgMRNConfig,
    OptimiserConfig,
    PlainSampling,
    RefinementConfig,
    RegionConfig,
)
from pipeline.config.compose import (
    ComposedConfig,
    diff,
    load_benchmark_config,
    load_experiment,
    show,
)
from pipeline.config.compose import values_of as values
from pipeline.config.files import CONFIGS, config_names
from pipeline.config.identity import config_hash, group_hash
from pipeline.config.yaml_tree import yaml_value

positive = st.floats(1e-12, 1e12)
weight = st.just(0.0) | st.floats(1e-300, 1e6)
levels = st.lists(st.sampled_from(["c2", "c3", "c4", "c5"]), min_size=1, max_size=4, unique=True).map(sorted).map(tuple)
models = st.builds(
    MgMRNConfig,
    levels=levels,
    width=st.integers(1, 64).map(lambda n: 32 * n),
    regions=st.builds(
        RegionConfig, mode=st.sampled_from(["none", "released", "regions", "tokens"]), count=st.integers(2, 64)
    ),
    refinement=st.builds(RefinementConfig, topology=st.sampled_from(["none", "cascade"]), detach=st.booleans()),
    decoder=st.builds(DecoderConfig, temperature=st.sampled_from(["none", "sqrt", "learned"])),
) | st.builds(ESZSLConfig, log10_gamma=st.lists(st.floats(-5, 5), max_size=4).map(tuple))
configs = st.builds(
    ExperimentConfig,
    benchmark=st.builds(
        BenchmarkConfig,
        name=st.from_regex(r"\A[A-Za-z0-9_\-]+\Z"),
        word_vectors=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
        tune_split_seed=st.integers(-(2**53), 2**53),
    ),
    model=models,
    loss=st.builds(
        LossConfig,
        scale=positive,
        regression=weight,
        level_weights=st.dictionaries(st.sampled_from(["c2", "c3", "c4", "c5"]), weight),
    ),
    optimiser=st.builds(OptimiserConfig, head_lr=positive, clip_norm=st.none() | positive),
    sampling=st.builds(PlainSampling, batch=st.integers(2, 4096))
    | st.builds(EpisodicSampling, ways=st.integers(2, 64)),
    seed=st.integers(0, 2**53),
)


NUMERAL = ExperimentConfig(benchmark=BenchmarkConfig(name="5E4", word_vectors="0E0"))
"""Text that reads as a number where it stands without quotes."""


def composed_again(text: str, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(str(path), overrides).config


@given(configs)
@example(NUMERAL)
def test_a_config_survives_the_way_through_yaml(config: ExperimentConfig) -> None:
    again = composed_again(show(ComposedConfig("x", config, {})))
    assert again == config
    assert diff(again, config) == {}
    assert config_hash(again, "data") == config_hash(config, "data")


@given(configs, configs)
@example(NUMERAL, NUMERAL)
def test_overriding_every_value_turns_one_config_into_another(base: ExperimentConfig, wanted: ExperimentConfig) -> None:
    overrides = [f"{path}={yaml_value(value)}" for path, value in values(wanted).items()]
    # Mappings merge, so what only the base names has to be taken out first.
    bare = base.model_copy(update={"loss": LossConfig()})
    kinds_first = sorted(overrides, key=lambda override: ".kind=" not in override)
    assert composed_again(show(ComposedConfig("x", bare, {})), tuple(kinds_first)) == wanted


@given(configs, configs)
def test_hashes_tell_configs_apart_and_group_hash_forgets_the_seed(
    one: ExperimentConfig, other: ExperimentConfig
) -> None:
    assert (config_hash(one, "d") == config_hash(other, "d")) == (one == other)
    reseeded = one.model_copy(update={"seed": one.seed + 1})
    assert config_hash(reseeded, "d") != config_hash(one, "d")
    assert group_hash(reseeded, "d") == group_hash(one, "d")
    assert config_hash(one, "d") != config_hash(one, "e")


@pytest.mark.parametrize("name", config_names("experiment"))
def test_every_shipped_experiment_loads_and_says_what_it_is_for(name: str) -> None:
    config = load_experiment(name).config
    assert config.benchmark.name
    header = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    for word in ("# Question:", "# Cost:", "Expected score:", "# Command:"):
        assert word in header


@pytest.mark.parametrize("path", sorted((CONFIGS / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_loads(path: Path) -> None:
    assert load_benchmark_config(path.stem).name
