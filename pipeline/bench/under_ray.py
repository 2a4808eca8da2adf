"""A stretch of training by the ranks of a Ray Train run, with the times at which it came where.

Nothing heavy is imported before a rank begins: driver and controller of a real run do not load the network's packages either.
"""

from __future__ import annotations

import time
from pathlib import Path

from ray.train import RunConfig

from mgmrn.config import Frozen
from pipeline.bench.spec import StretchSpec
from pipeline.train.cluster import Placement
from pipeline.train.fit import QUIET, make_trainer

WARM_UP = 2
"""Batches before those that are timed."""


class StretchTimes(Frozen):
    """How rank 0 fared. Moments are seconds since the epoch, by its host's clock."""

    entered: float
    """When it began."""
    imported: float
    """When the network's packages were loaded."""
    ready: float
    """When data and network were there."""
    first_step: float
    """When the first step was made."""
    seconds: float
    """That the timed batches took."""
    images: int
    """In the timed batches, over all ranks."""
    gradient_bytes: int
    exchange_seconds: float
    """Of a sum of the gradients over all ranks, with nothing else to do; 0 for one rank."""


def train_stretch(spec: StretchSpec, placement: Placement, storage: Path) -> StretchTimes:
    """Runs it on the cluster that this process is connected to.

    Args:
        spec: its `answer` must stand in a folder that every host sees.
        placement: ranks and their resources.
        storage: folder for Ray Train's own files.

    Raises:
        TrainingFailedError: when a rank failed.
    """
    run_config = RunConfig(name="bench", storage_path=str(storage), logging_config=QUIET)
    make_trainer(placement, time_rank, spec.model_dump_json(), run_config).fit()
    return StretchTimes.model_validate_json(spec.answer.read_bytes())


def time_rank(loop: dict[str, str]) -> None:
    """What each rank does.

    Args:
        loop: `{"spec": StretchSpec as JSON}`.
    """
    entered = time.time()
    from pipeline.bench.timed_rank import run_timed

    run_timed(StretchSpec.model_validate_json(loop["spec"]), entered)
