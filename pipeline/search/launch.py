"""`search`, from the request to the answer: checked before anything starts, run, and the winner compared with the base.

Only the `tune` split is ever loaded here. The score of the best of many trials flatters it; what is reported is its comparison with the
base over seeds that the search has not seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mgmrn.config import ESZSLConfig
from mgmrn.data.splits import TuneData, check_images_exist, evaluation_images, load_tune
from mgmrn.errors import UserError
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.config.identity import group_hash
from pipeline.console import say
from pipeline.driver import Driver, driver_tag, heartbeat
from pipeline.search.config import SearchFile
from pipeline.search.request import SearchOutcome, SearchRequest
from pipeline.search.space import Space
from pipeline.search.study import DATABASE_ERRORS, Study, forget_study, lost, study_size
from pipeline.tracking.store import TrackingStore
from pipeline.train.cluster import check_room_here, ray_session
from pipeline.train.storage import check_writable, explained, taken
from pipeline.train.tracked import END_SECONDS, parent_run, send_leftovers
from pipeline.trials.site import make_pool

_DRIVER, _OUTCOME = "driver", "outcome"
POLL_SECONDS = 1.0


def run_search(request: SearchRequest) -> SearchOutcome:
    """Runs a search, or goes on with one.

    Raises:
        UserError: for a bad space, config or data set, a study that would need `--resume`, a database out of reach;
            nothing was started.
        ResourceError: when not even one trial can ever be placed, or the storage is full or read-only.
        TrackingError: when the tracking store cannot be reached.
    """
    search = request.search
    config = search.config if request.trials is None else search.config.model_copy(update={"trials": request.trials})
    request = replace(request, where=request.where.absolute())
    space = Space(search)
    benchmarks: tuple[str | None, ...] = config.benchmarks or (None,)
    bases = {name: space.compose({}, name) for name in benchmarks}
    if config.objective.cost != "none" and any(isinstance(base.config.model, ESZSLConfig) for base in bases.values()):
        raise UserError("ESZSL has neither steps nor trained parameters", "objective.cost", "leave the cost out")
    data = {name: load_tune(request.where.data_root, base.config.benchmark) for name, base in bases.items()}
    name = _study_name(search, bases, data, request.where.data_root)
    folder = request.where.storage / "search" / name
    store = TrackingStore.connect(request.where.tracking_uri, f"mgmrn/search/{search.name}")
    left = send_leftovers(folder, store, END_SECONDS)
    size = study_size(name, request.study_storage)
    if size is not None:
        earlier = Study(name, request.study_storage, config, space)
        _wait_for_other_driver(earlier, search)
        if not request.force:
            known = earlier.remembered(_OUTCOME)
            if known is not None and size >= config.trials:
                if left:
                    say(f"error: {left}")
                return replace(SearchOutcome.from_json(json.loads(known), "cached"), is_tracked=left is None)
            _check_resumption_is_meant(request, size, config.trials)
    check_writable(request.where.storage)
    check_room_here(request.where.address, config.workers * (request.concurrency or 1), request.where.cpus_per_worker)
    for split in data.values():
        check_images_exist(split.train.followed_by(evaluation_images(split)))
    session = ray_session(request.where.address)
    with explained(request.where.storage), heartbeat(request.where.storage), taken([folder]), session as hosts:
        pool = make_pool(
            hosts,
            config.trials,
            config.workers,
            request.concurrency,
            request.where.cpus_per_worker,
            request.where.gpus_per_worker,
        )
        if request.force:
            forget_study(name, request.study_storage)
            shutil.rmtree(folder, ignore_errors=True)
        study = Study(name, request.study_storage, config, space)
        study.begin_with(space.encoded(next(iter(bases.values())).config))
        study.remember(_DRIVER, driver_tag())
        with parent_run(store, folder, *_parent(search, name, data), restart=request.force) as parent:
            # Loading what runs trials takes seconds, which a search that has ended is not to wait for.
            from pipeline.search.course import run_course
            from pipeline.search.director import Tunables
            from pipeline.search.warm import warm_cache
            from pipeline.train.tracked import Opening
            from pipeline.trials.site import Clerk, Site

            placed = pool.placement
            slots = min(pool.concurrency * placed.workers, max(host.cpus for host in hosts) // placed.cpus_per_worker)
            warm_cache(
                space, bases, request.where.data_root, max(1, slots) * placed.cpus_per_worker, placed.gpus_per_worker
            )
            opening = Opening(name, parent.run_id, placed)
            site = Site(store, opening, request.where.data_root, folder, pool, Clerk())
            tunables = Tunables(data, request.where.data_root)
            try:
                outcome = run_course(request, config, study, space, site, tunables, bases)
            except DATABASE_ERRORS as error:
                raise lost(request.study_storage, error) from error
            site.clerk.finish()
            parent.attach(folder / "report")
            if outcome.status == "failed":
                parent.status, parent.reason = "FAILED", "no trial finished"
    study.remember(_OUTCOME, json.dumps(outcome.to_json()))
    return replace(outcome, is_tracked=parent.is_tracked)


def _wait_for_other_driver(study: Study, search: SearchFile) -> None:
    """Waits while a living driver runs the search, and says so; what it found is then the answer."""
    waited = False
    while (driver := Driver.parse(study.remembered(_DRIVER) or "")) and not driver.is_this_process:
        if driver.is_dead or study.remembered(_OUTCOME) is not None:
            return
        if not waited:
            say(
                f"the search {search.name} is being run by process {driver.pid} on {driver.host}: waiting for it to end"
            )
        waited = True
        time.sleep(POLL_SECONDS)


def _check_resumption_is_meant(request: SearchRequest, size: int, trials: int) -> None:
    if 0 < size < trials and not request.resume:
        raise UserError(
            f"the search {request.search.name} was begun and has {size} of {trials} trials",
            request.search.label,
            "add --resume to go on with it, or --force to start anew",
        )


def _study_name(
    search: SearchFile, bases: Mapping[str | None, ComposedConfig], data: Mapping[str | None, TuneData], data_root: Path
) -> str:
    """Changes with all that would make old trials say nothing about new ones; not with the number of trials."""
    science = search.config.model_dump(mode="json", exclude={"trials", "confirm_seeds", "workers"})
    groups = [group_hash(resolve_weights(base.config, data_root), data[name].digest) for name, base in bases.items()]
    text = json.dumps([science, groups], sort_keys=True)
    return f"{search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _parent(search: SearchFile, name: str, data: Mapping[str | None, TuneData]) -> tuple[str, str, dict[str, str]]:
    tags = {
        "mgmrn.kind": "search",
        "mgmrn.study": name,
        "mgmrn.benchmark": ",".join(one.benchmark for one in data.values()),
    }
    return name, f"search {search.name}", tags
