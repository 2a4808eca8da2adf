"""Caches ahead of time: the maps or the packed pictures that the runs of an experiment read on both splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mgmrn.config import ExperimentConfig
from mgmrn.errors import UserError
from pipeline.config.compose import resolve_weights


def build_caches(
    config: ExperimentConfig, data_root: Path, cache_root: Path, progress: Callable[[str], None]
) -> dict[str, int]:
    """Computes the maps, or decodes the pictures, of all images that `tune` and `final` read, where they are missing or damaged.

    Returns the number of training and evaluation images of each split. Raises `UserError` for a config that caches nothing, a benchmark with
    errors or an unreadable picture, and `ResourceError` when they do not fit on the disk.
    """
    if not (config.cache_features or config.cache_pictures):
        raise UserError(
            "the experiment caches neither maps nor pictures",
            "cache_features, cache_pictures",
            "set cache_features=true, or cache_pictures=true where the backbone is finetuned",
        )
    from mgmrn.data.kept import remove_check_notes
    from mgmrn.data.splits import load_final, load_tune
    from mgmrn.device import usual_device
    from mgmrn.sources import cached_maps, packed_pictures

    config = resolve_weights(config, data_root)
    remove_check_notes(cache_root)
    device = usual_device()
    counts: dict[str, int] = {}
    for data in (load_tune(data_root, config.benchmark), load_final(data_root, config.benchmark)):
        if config.cache_features:
            maps = cached_maps(config, data, cache_root, device, progress)
            counts[data.split] = sum(len(part.rows) for part in maps)
        else:
            pictures = packed_pictures(config, data, cache_root, progress)
            counts[data.split] = sum(len(part.ids) for part in pictures)
    return counts
