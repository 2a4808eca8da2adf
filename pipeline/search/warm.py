"""Feature caches of a search: maps of every level that the space contains, computed in one pass before the trials.

Without it, the first trial with a further level would decode all pictures again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mgmrn.config import LEVELS, ExperimentConfig, Level, MgMRNConfig
from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.console import say
from pipeline.search.space import Space


def warm_cache(space: Space, bases: Mapping[str | None, ComposedConfig], data_root: Path, cpus: int, gpus: int) -> None:
    """Computes the maps on one of the cluster's hosts; nothing where the base caches none.

    Hosts that share no file system with it compute their own when their first trial starts.

    Args:
        space: which levels may be asked for.
        bases: the base on each benchmark.
        data_root: folder of the benchmarks, absolute.
        cpus: threads of the pass.
        gpus: 1 to run the backbone on one.

    Raises:
        UserError: for an unreadable picture or weights that do not fit.
        ResourceError: when the maps do not fit on the disk.
    """
    import ray

    for base in bases.values():
        config = resolve_weights(base.config, data_root)
        if not config.cache_features:
            continue
        if space.may_be("benchmark.images.flip", True):
            config = _with_flips(config)
        levels = tuple(level for level in LEVELS if space.may_read(level) or level in _own_levels(config))
        say(f"caching the maps of {', '.join(levels)} of {config.benchmark.name}, unless they are there")
        task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_warm)
        mistake = ray.get(task.remote(config.model_dump_json(), levels, str(data_root), str(places.CACHE.resolve())))
        if mistake is not None:
            raise mistake


def _own_levels(config: ExperimentConfig) -> set[Level]:
    return set(config.model.levels) if isinstance(config.model, MgMRNConfig) else {config.model.level}


def _with_flips(config: ExperimentConfig) -> ExperimentConfig:
    """A cache with mirror images serves trials that want none too."""
    images = config.benchmark.images.model_copy(update={"flip": True})
    return config.model_copy(update={"benchmark": config.benchmark.model_copy(update={"images": images})})


def _warm(
    config_json: str, levels: tuple[Level, ...], data_root: str, cache_root: str
) -> UserError | ResourceError | None:
    """Computes the maps in a Ray task; returns the error that the user must mend, since Ray would wrap an exception."""
    from mgmrn.data.seal import close_seal
    from mgmrn.data.splits import load_tune
    from mgmrn.device import usual_device
    from mgmrn.sources import cached_maps

    close_seal()
    config = ExperimentConfig.model_validate_json(config_json)
    device = usual_device()
    data = load_tune(Path(data_root), config.benchmark)
    try:
        cached_maps(config, data, Path(cache_root), device, lambda message: None, levels)
    except (UserError, ResourceError) as error:
        return error
    return None
