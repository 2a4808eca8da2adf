"""What makes two runs the same experiment: a hash of the science, the data and the pretrained weights."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from mgmrn.config import SCHEMA_VERSION, ExperimentConfig
from mgmrn.weights import is_weights_file, weights_digest

HASH_LENGTH = 16
REPOSITORY = Path(__file__).resolve().parents[2]
SCIENCE = ("mgmrn/**/*.py", "pipeline/train/worker.py", "pipeline/train/closed_form.py")
"""The code that a run's figures come from."""


def config_hash(config: ExperimentConfig, data_digest: str) -> str:
    """First 16 hex digits of the sha256 of the full config, the schema version, and the digests of data and weights.

    A weights file counts by its content, wherever it lies; `find_weights` must have made its path absolute.

    Args:
        config: the science; nothing else (workers, paths, tracking) takes part.
        data_digest: digest of the benchmark's images, labels, splits and attributes.
    """
    return _hash(config.model_dump(mode="json"), config.model.backbone.weights, data_digest)


def group_hash(config: ExperimentConfig, data_digest: str) -> str:
    """The same with the seed left out: runs that differ by their seed alone share it."""
    return _hash(config.model_dump(mode="json", exclude={"seed"}), config.model.backbone.weights, data_digest)


def science_hash(config: ExperimentConfig) -> str:
    """The same as `config_hash` whatever the data: what tells a run on other data from a run of another config."""
    return config_hash(config, "any")


def shape_hash(config: ExperimentConfig, data_digest: str) -> str:
    """Runs that share it take about the same time: seed, loss and optimiser are left out."""
    values = config.model_dump(mode="json", exclude={"seed", "loss", "optimiser"})
    return _hash(values, config.model.backbone.weights, data_digest)


@cache
def code_digest() -> str:
    """First 16 hex digits of the sha256 of all code of which a run's figures depend."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SCIENCE for path in REPOSITORY.glob(pattern)}):
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:HASH_LENGTH]


def _hash(values: dict[str, Any], weights: str, data_digest: str) -> str:
    if not values["model"]["backbone"]["recompute"]:
        # This field came later: a run from before it is the same as one that leaves it alone.
        del values["model"]["backbone"]["recompute"]
    # What is trained is the same with and without.
    del values["cache_pictures"]
    digest = weights_digest(weights)
    if is_weights_file(weights):
        values["model"]["backbone"]["weights"] = f"sha256:{digest}"
    identity = {"schema": SCHEMA_VERSION, "config": values, "data": data_digest, "weights": digest}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:HASH_LENGTH]
