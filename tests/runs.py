"""Runs of a tracking store that are created without a spool."""

from collections.abc import Mapping

from mgmrn.config import ExperimentConfig
from pipeline.config.compose import values_of
from pipeline.config.yaml_tree import yaml_value
from pipeline.driver import driver_tag
from pipeline.spool import PARENT_TAG, NewRun
from pipeline.tracking.store import DRIVER_TAG, TrackingStore


def create_child(
    store: TrackingStore, parent_run_id: str, name: str, tags: Mapping[str, str], config: ExperimentConfig
) -> str:
    """Create a run below a launch, with its config as params; returns its id."""
    params = {path: yaml_value(value) for path, value in values_of(config).items()}
    new = NewRun(name, {**tags, PARENT_TAG: parent_run_id, DRIVER_TAG: driver_tag()}, params)
    run_id = store.create_run(new)
    store.describe_run(run_id, new)
    return run_id
