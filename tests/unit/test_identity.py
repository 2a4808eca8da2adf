"""Identity of experiments: golden hashes, which change only when the meaning of a config changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmrn.config import AttributeNetworkConfig, BenchmarkConfig, ESZSLConfig, ExperimentConfig, LossConfig, MgMRNConfig
from pipeline.config.compose import load_experiment, resolve_weights
from pipeline.config.identity import REPOSITORY, config_hash, group_hash, science_files

PLAIN = ExperimentConfig(benchmark=BenchmarkConfig(name="CUB"))


def with_weights(weights: str) -> ExperimentConfig:
    model = MgMRNConfig()
    backbone = model.backbone.model_copy(update={"weights": weights})
    return PLAIN.model_copy(update={"model": model.model_copy(update={"backbone": backbone})})


def test_golden_hashes() -> None:
    """When this fails, finished runs are no longer found. Where that is meant, write the new hashes here."""
    assert config_hash(PLAIN, "data") == "dcb82d92c5c6fa1e"
    assert group_hash(PLAIN, "data") == "dcb82d92c5c6fa1e"
    released = load_experiment("cub-released").config
    assert config_hash(released, "data") == "a5c6538bf35c268a"


def test_a_value_counts_where_it_differs_from_its_default() -> None:
    """So a new field with a default changes no hash."""
    same = ExperimentConfig.model_validate(PLAIN.model_dump())
    assert config_hash(same, "d") == config_hash(PLAIN, "d")
    assert config_hash(PLAIN, "d") != config_hash(PLAIN.model_copy(update={"loss": LossConfig(regression=0.2)}), "d")
    assert config_hash(PLAIN, "e") != config_hash(PLAIN, "d")


def test_two_kinds_without_other_values_are_two_configs() -> None:
    models = [MgMRNConfig(), ESZSLConfig(), AttributeNetworkConfig()]
    assert len({config_hash(PLAIN.model_copy(update={"model": model}), "d") for model in models}) == 3


def test_a_weights_file_counts_by_its_content(tmp_path: Path) -> None:
    files = {name: tmp_path / name / "weights.pth" for name in ("a", "b", "c")}
    for name, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        files[name].parent.mkdir()
        files[name].write_bytes(content)
    hashes = {name: config_hash(with_weights(str(path)), "data") for name, path in files.items()}
    assert hashes["a"] == hashes["b"] != hashes["c"]
    assert config_hash(with_weights("none"), "data") != config_hash(with_weights("IMAGENET1K_V1"), "data")


def test_a_weights_file_must_be_found_first(tmp_path: Path) -> None:
    config = load_experiment("cub100").config
    weights = tmp_path / config.model.backbone.weights
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    assert len(config_hash(resolve_weights(config, tmp_path), "data")) == 16


@pytest.mark.parametrize("field", ["seed", "cache_features"])
def test_only_the_seed_is_left_out_of_a_group(field: str) -> None:
    changed = PLAIN.model_copy(update={field: {"seed": 1, "cache_features": True}[field]})
    assert config_hash(changed, "d") != config_hash(PLAIN, "d")
    assert (group_hash(changed, "d") == group_hash(PLAIN, "d")) == (field == "seed")


def test_the_code_digest_covers_what_figures_depend_on() -> None:
    found = {str(path.relative_to(REPOSITORY)) for path in science_files()}
    assert {"mgmrn/engine.py", "mgmrn/model/regions.py", "mgmrn/data/xlsa17.py", "pipeline/train/worker.py"} <= found
    assert (
        not {"mgmrn/makers/drawing.py", "mgmrn/data/doctor.py", "mgmrn/explanation.py", "pipeline/cli/app.py"} & found
    )
