"""Shipped configs: released settings, our defaults, baselines on the same footing, and the note at the head of each file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgmrn.config import ExperimentConfig, MgMRNConfig
from pipeline.ablation.config import load_ablation
from pipeline.ablation.grid import make_grid
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.config.compose import load_benchmark_config, load_experiment, values_of
from pipeline.config.files import CONFIGS, config_names

BENCHMARKS = ("cub", "sun", "awa2")
SETTINGS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("shipped_settings.yaml").read_text())


def differing(config: ExperimentConfig, wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = values_of(config)
    return {path: (found.get(path), value) for path, value in wanted.items() if found.get(path) != value}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_released_settings_and_our_defaults(name: str) -> None:
    named = {"benchmark.name": name.upper()}
    released, ours = load_experiment(f"{name}-released").config, load_experiment(name).config
    assert differing(released, SETTINGS["released everywhere"] | SETTINGS[name] | named) == {}
    assert differing(ours, SETTINGS["ours"] | named) == {}
    assert isinstance(ours.model, MgMRNConfig) and len(ours.model.levels) > 1


@pytest.mark.parametrize("name", [*BENCHMARKS, "cub100", "synthetic"])
def test_baselines_see_the_same_pictures_through_the_same_backbone(name: str) -> None:
    ours = values_of(load_experiment(name).config)
    for suffix, kind in (("-eszsl", "eszsl"), ("-attribute-network", "attribute_network")):
        baseline = load_experiment(f"{name}{suffix}").config
        assert differing(baseline, {path: ours[path] for path in SETTINGS["shared"]} | {"model.kind": kind}) == {}


def test_every_shipped_config_is_valid_and_says_what_it_asks_costs_and_how_it_is_run() -> None:
    for name in config_names("benchmark"):
        load_benchmark_config(name)
    for name in config_names("experiment"):
        load_experiment(name)
        text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
        head = text[: text.index("\nextends:")]
        words = ("# Question: ", "# Cost: ", "Expected score: ", "# Command: ", f"python -m pipeline train {name}")
        assert [word for word in words if word not in head] == []


def test_every_shipped_ablation_fits_its_base_and_says_what_it_asks_costs_and_how_it_is_run() -> None:
    variants = {}
    for name in config_names("ablation"):
        grid = make_grid(load_ablation(f"ablation/{name}"))
        variants[name] = len(grid.variants)
        # The demo has one seed, so that it is quick; its tables name no winner.
        assert name == "demo" or len(grid.file.config.seeds) >= LEAST_PAIRS, "a winner can be named"
        words = ("Question: ", "Cost: ", "Found: ", "Command: ", f"python -m pipeline ablate {name}")
        assert [word for word in words if word not in grid.file.question] == []
    assert min(variants.values()) > 1
    assert {"levels": 2**4 - 1, "regions": 3 * 4, "components": 15}.items() <= variants.items()
