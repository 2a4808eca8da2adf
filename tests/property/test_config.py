"""Every config can be written as YAML and as overrides and read again, and different configs have different hashes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import example, given, settings
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
from pipeline.config.compose import ComposedConfig, diff, load_experiment, show, values_of
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
"""Config with texts that would be numbers without quotes."""


def composed_again(config: ExperimentConfig, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """A config written as YAML, overridden and read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.yaml"
        path.write_text(show(ComposedConfig("x", config, {})), encoding="utf-8")
        return load_experiment(str(path), overrides).config


@settings(max_examples=30)
@given(configs)
@example(NUMERAL)
def test_a_config_survives_yaml(config: ExperimentConfig) -> None:
    again = composed_again(config)
    assert again == config
    assert diff(again, config) == {}
    assert config_hash(again, "data") == config_hash(config, "data")


@settings(max_examples=25)
@given(configs, configs)
@example(NUMERAL, NUMERAL)
def test_overriding_every_value_turns_one_config_into_another(base: ExperimentConfig, wanted: ExperimentConfig) -> None:
    overrides = [f"{path}={yaml_value(value)}" for path, value in values_of(wanted).items()]
    # Mappings merge, so entries of the base alone have to be taken out first.
    bare = base.model_copy(update={"loss": LossConfig()})
    kinds_first = sorted(overrides, key=lambda override: ".kind=" not in override)
    assert composed_again(bare, tuple(kinds_first)) == wanted


@settings(max_examples=30)
@given(configs)
def test_a_hash_follows_values_and_data_and_a_group_hash_leaves_out_the_seed(one: ExperimentConfig) -> None:
    reseeded = one.model_copy(update={"seed": one.seed + 1})
    assert config_hash(reseeded, "d") != config_hash(one, "d")
    assert group_hash(reseeded, "d") == group_hash(one, "d")
    assert config_hash(one, "d") != config_hash(one, "e")
