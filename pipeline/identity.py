"""What makes two runs the same experiment: a hash of the science, the data and the pretrained weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mgmrn.config import SCHEMA_VERSION, ExperimentConfig
from mgmrn.weights import is_weights_file, weights_digest

HASH_LENGTH = 16


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


def _hash(values: dict[str, Any], weights: str, data_digest: str) -> str:
    digest = weights_digest(weights)
    if is_weights_file(weights):
        values["model"]["backbone"]["weights"] = f"sha256:{digest}"
    identity = {"schema": SCHEMA_VERSION, "config": values, "data": data_digest, "weights": digest}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:HASH_LENGTH]
