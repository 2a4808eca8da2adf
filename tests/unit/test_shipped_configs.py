"""What the experiments of CUB, SUN and AWA2 hold: released settings, our defaults, baselines on the same footing."""

from __future__ import annotations

from typing import Any

import pytest

from mgmrn.config import AttributeNetworkConfig, EpisodicSampling, ESZSLConfig, ExperimentConfig, MgMRNConfig
from pipeline.ablation.config import load_ablation
from pipeline.ablation.grid import make_grid
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.config.compose import load_experiment, values_of
from pipeline.config.files import CONFIGS, config_names

BENCHMARKS = ("cub", "sun", "awa2")

# Settings of the released code: ways, shots, learning rate, its factor every ten epochs, λ_reg, scale, seed.
RELEASED = {
    "cub": (8, 2, 5e-4, 0.1, 0.1, 20, 214),
    "sun": (8, 2, 5e-4, 0.5, 1, 25, 214),
    "awa2": (16, 2, 5e-5, 0.5, 1, 20, 1514),
}

RELEASED_EVERYWHERE = {
    "benchmark.images.size": 448,
    "model.kind": "mgmrn",
    "model.backbone.name": "resnet101",
    "model.backbone.trainable": "all",
    "model.levels": ["c3", "c4", "c5"],
    "model.width": 2048,
    "model.regions.mode": "released",
    "model.regions.count": 5,
    "model.granularity.reduce": "after",
    "model.granularity.stem": "none",
    "model.granularity.group_norm_groups": 32,
    "model.refinement.topology": "cascade",
    "model.refinement.detach": True,
    "model.decoder.attention_width": 1024,
    "model.decoder.word_vectors": "raw",
    "model.decoder.temperature": "none",
    "loss.regression_reduction": "mean",
    "optimiser.name": "sgd",
    "optimiser.momentum": 0.9,
    "optimiser.weight_decay": 1e-5,
    "schedule.epochs": 30,
    "schedule.order": "sequential",
    "schedule.learning_rate": "step",
    "schedule.step_epochs": 10,
    "sampling.kind": "episodic",
    "sampling.episodes": 300,
    "cache_features": False,
}

OUR_DEFAULTS = {
    "benchmark.images.size": 448,
    "model.kind": "mgmrn",
    "model.regions.mode": "regions",
    "model.granularity.reduce": "strided",
    "model.refinement.topology": "adjacent",
    "loss.regression_reduction": "sum",
    "schedule.order": "joint",
}


def config(name: str) -> ExperimentConfig:
    return load_experiment(name).config


def differing(config: ExperimentConfig, wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = values_of(config)
    return {path: (found[path], value) for path, value in wanted.items() if found[path] != value}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_released_settings(name: str) -> None:
    ways, shots, rate, factor, regression, scale, seed = RELEASED[name]
    released = config(f"{name}-released")
    assert released.benchmark.name == name.upper()
    assert isinstance(released.sampling, EpisodicSampling)
    own = {
        "sampling.ways": ways,
        "sampling.shots": shots,
        "optimiser.head_lr": rate,
        "optimiser.backbone_lr": rate,
        "schedule.step_factor": factor,
        "loss.regression": regression,
        "loss.scale": scale,
        "seed": seed,
    }
    assert differing(released, RELEASED_EVERYWHERE | own) == {}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_our_defaults(name: str) -> None:
    ours = config(name)
    assert ours.benchmark.name == name.upper()
    assert isinstance(ours.model, MgMRNConfig) and len(ours.model.levels) > 1
    assert differing(ours, OUR_DEFAULTS) == {}


@pytest.mark.parametrize("name", [*BENCHMARKS, "cub100", "synthetic"])
def test_baselines_see_the_same_pictures_through_the_same_backbone(name: str) -> None:
    ours, eszsl, network = (config(f"{name}{suffix}") for suffix in ("", "-eszsl", "-attribute-network"))
    assert isinstance(eszsl.model, ESZSLConfig) and isinstance(network.model, AttributeNetworkConfig)
    for baseline in (eszsl, network):
        assert baseline.benchmark.name == ours.benchmark.name
        assert baseline.benchmark.tune_seen_fraction == ours.benchmark.tune_seen_fraction
        assert baseline.benchmark.tune_split_seed == ours.benchmark.tune_split_seed
        assert (baseline.benchmark.images.size, baseline.benchmark.images.resize) == (
            ours.benchmark.images.size,
            ours.benchmark.images.resize,
        )
        assert baseline.model.backbone.name == ours.model.backbone.name
        assert baseline.model.backbone.weights == ours.model.backbone.weights


def test_every_shipped_experiment_is_valid_and_says_what_it_asks_costs_and_how_it_is_run() -> None:
    for name in config_names("experiment"):
        load_experiment(name)
        text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
        head = text[: text.index("\nextends:")]
        assert head.startswith("# Question: ") and "Cost: " in head
        assert f"python -m pipeline train {name}" in head


@pytest.mark.parametrize("name", config_names("ablation"))
def test_every_shipped_ablation_fits_its_base_and_says_what_it_asks_costs_and_how_it_is_run(name: str) -> None:
    grid = make_grid(load_ablation(f"ablation/{name}"))
    assert len(grid.variants) > 1
    # The README's grid is there to be run once by a newcomer; its table says that one seed names no winner.
    assert name == "synthetic-quick" or len(grid.file.config.seeds) >= LEAST_PAIRS, "a winner can be named"
    head = grid.file.question
    assert head.startswith("Question: ")
    assert all(word in head for word in ("Cost: ", "Found: ", "Command: ", f"python -m pipeline ablate {name}"))


def test_shipped_grids_have_the_variants_that_they_are_about() -> None:
    numbers = {name: len(make_grid(load_ablation(name)).variants) for name in ("levels", "regions", "components")}
    assert numbers == {"levels": 2**4 - 1, "regions": 3 * 4, "components": 10}
