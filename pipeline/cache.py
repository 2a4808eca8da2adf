"""Feature caches ahead of time: the maps that the runs of an experiment will read, on either split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.compose import resolve_weights


def build_caches(
    config: ExperimentConfig, data_root: Path, cache_root: Path, progress: Callable[[str], None]
) -> dict[str, int]:
    """Computes the maps of all images that `tune` and `final` read, where they are not there yet.

    Returns:
        The number of training and evaluation images of each split.

    Raises:
        UserError: for a config that caches nothing, a benchmark with errors, an unreadable picture.
        ResourceError: when the maps do not fit on the disk.
    """
    if not config.cache_features:
        raise UserError("the experiment does not train on cached features", "cache_features", "set cache_features=true")
    from mgmrn.data.splits import load_final, load_tune
    from mgmrn.device import usual_device
    from mgmrn.feed import cached_maps

    config = resolve_weights(config, data_root)
    device = usual_device()
    counts: dict[str, int] = {}
    for data in (load_tune(data_root, config.benchmark), load_final(data_root, config.benchmark)):
        train, evaluation = cached_maps(config, data, cache_root, device, progress)
        counts[data.split] = len(train.rows) + len(evaluation.rows)
    return counts
