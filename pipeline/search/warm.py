"""Feature caches of a search: maps of every level that the space contains, computed in one pass before the trials."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import ray

from mgmrn.config import LEVELS, ExperimentConfig, Level, MgMRNConfig
from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.console import say
from pipeline.search.space import Space


def warm_cache(space: Space, bases: Mapping[str | None, ComposedConfig], data_root: Path, cpus: int, gpus: int) -> None:
    """Cache the maps of every level in one pass on a host, so that no trial with a further level decodes all pictures again."""
    for base in bases.values():
        config = resolve_weights(base.config, data_root)
        if not config.cache_features:
            continue
        if True in (*space.choices("benchmark.images.flip"), *space.choices("mirror_scores")):
            # A cache with mirror images serves trials without them too.
            images = config.benchmark.images.model_copy(update={"flip": True})
            benchmark = config.benchmark.model_copy(update={"images": images})
            config = config.model_copy(update={"benchmark": benchmark})
        own = config.model.levels if isinstance(config.model, MgMRNConfig) else (config.model.level,)
        read = {*own, *space.choices("model.level"), *chain(*space.choices("model.levels"))}
        levels = tuple(level for level in LEVELS if level in read)
        say(f"caching the maps of {', '.join(levels)} of {config.benchmark.name}, unless they are there")
        task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_warm)
        mistake = ray.get(task.remote(config.model_dump_json(), levels, str(data_root), str(places.CACHE.resolve())))
        if mistake is not None:
            raise mistake


def _warm(
    config_json: str, levels: tuple[Level, ...], data_root: str, cache_root: str
) -> UserError | ResourceError | None:
    """Cache the maps in a Ray task; returns the user's mistake, since Ray would wrap an exception."""
    from mgmrn.data.seal import close_seal
    from mgmrn.data.splits import load_tune
    from mgmrn.device import usual_device
    from mgmrn.sources import cached_maps

    close_seal()
    config = ExperimentConfig.model_validate_json(config_json)
    data = load_tune(Path(data_root), config.benchmark)
    try:
        cached_maps(config, data, Path(cache_root), usual_device(), lambda message: None, levels)
    except (UserError, ResourceError) as error:
        return error
    return None
