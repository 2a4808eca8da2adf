"""Identity of an experiment: a hash of the values that differ from the defaults, of the data and of the pretrained weights."""

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mgmrn.config import SCHEMA_VERSION, ExperimentConfig
from mgmrn.weights import weights_digest

HASH_LENGTH = 16
REPOSITORY = Path(__file__).resolve().parents[2]
SCIENCE = ("mgmrn/**/*.py", "pipeline/train/worker.py")
"""Code that a run's figures depend on, less `NO_SCIENCE`."""
NO_SCIENCE = (
    "mgmrn/makers/*.py",
    "mgmrn/data/class_table.py",
    "mgmrn/data/doctor.py",
    "mgmrn/data/published.py",
    "mgmrn/explanation.py",
    "mgmrn/localisation.py",
    "mgmrn/parts.py",
    "mgmrn/prediction.py",
)
"""Makers of benchmarks, checks of data sets, predictions and explanations of finished models."""


def config_hash(config: ExperimentConfig, data_digest: str, without: Collection[str] = ()) -> str:
    """First 16 hex digits of the sha256 of schema version, values that differ from the defaults, and the digests of data and weights.

    A new field with a default changes no hash. Fields and sections `without` are left out; workers, paths and tracking take no part.
    """
    changed = _changed(config, config.model_dump(mode="json"))
    changed = {name: value for name, value in changed.items() if name not in without}
    # Weights count by their digest alone.
    changed.get("model", {}).get("backbone", {}).pop("weights", None)
    identity = {
        "schema": SCHEMA_VERSION,
        "config": changed,
        "data": data_digest,
        "weights": weights_digest(config.model.backbone.weights),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:HASH_LENGTH]


def group_hash(config: ExperimentConfig, data_digest: str) -> str:
    """`config_hash` without the seed: equal for runs that differ in their seed alone."""
    return config_hash(config, data_digest, without=("seed",))


def science_files() -> list[Path]:
    """Files of the code digest, sorted."""
    left_out = {path for pattern in NO_SCIENCE for path in REPOSITORY.glob(pattern)}
    return sorted({path for pattern in SCIENCE for path in REPOSITORY.glob(pattern)} - left_out)


@cache
def code_digest() -> str:
    """First 16 hex digits of the sha256 of all code that a run's figures depend on."""
    digest = hashlib.sha256()
    for path in science_files():
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:HASH_LENGTH]


def _changed(model: BaseModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's JSON values that differ from its defaults; a section that differs also names its `kind`."""
    found: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name != "kind" and not field.is_required() and value == field.get_default(call_default_factory=True):
            continue
        found[name] = _changed(value, values[name]) if isinstance(value, BaseModel) else values[name]
    return found
