"""`search`, from the request to the outcome: checked before anything starts, run, and the best config compared with the base.

Only the `tune` split is ever loaded here. The score of the best of many trials is optimistic: its comparison over fresh seeds is reported.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mgmrn.config import ESZSLConfig
from mgmrn.data.splits import TuneData, load_tune
from mgmrn.errors import UserError
from pipeline.analysis.views import run_view
from pipeline.config.compose import ComposedConfig, resolve_weights
from pipeline.config.identity import group_hash
from pipeline.console import say
from pipeline.driver import Driver, driver_tag
from pipeline.redaction import redact_address
from pipeline.search.config import SearchFile
from pipeline.search.outcome import SearchOutcome, note
from pipeline.search.space import Space
from pipeline.search.study import Study, study_errors
from pipeline.tracking.store import NOTE_LIMIT, TrackingStore
from pipeline.train.cluster import launch_session
from pipeline.train.placement import Workers, check_gpus, place_trials
from pipeline.train.tracked import END_SECONDS, Opening, parent_run, send_leftovers
from pipeline.where import Where

_DRIVER, _OUTCOME = "driver", "outcome"
"""Attributes of the study."""
POLL_SECONDS = 1.0
EXPERIMENT_NOTE = "Trials, and runs of the best and the base over fresh seeds, scored on validation images. The launch has `study.html`."


def run_search(
    search: SearchFile,
    where: Where,
    study_storage: str,
    *,
    trials: int | None,
    concurrency: int | None,
    budget_hours: float | None,
    resume: bool,
    force: bool,
) -> SearchOutcome:
    """Run a search, or resume one; `force` deletes an earlier study of the same search first.

    Raises `UserError` for a bad space, config or data set, a study that would need `--resume`, a database out of reach: nothing was
    started; `TrackingError` when the tracking store cannot be reached; `ResourceError` when not even one trial can ever be placed, or the
    storage is full or read-only.
    """
    where = where.absolute()
    config = search.config if trials is None else search.config.model_copy(update={"trials": trials})
    check_gpus(where.gpus_per_worker, config.workers)
    space = Space(search)
    benchmarks: tuple[str | None, ...] = config.benchmarks or (None,)
    bases = {name: space.compose({}, name) for name in benchmarks}
    for base in bases.values():
        Workers(config.workers, config.workers).check_shares(base.config)
    if config.objective.cost != "none" and any(isinstance(base.config.model, ESZSLConfig) for base in bases.values()):
        raise UserError("ESZSL has neither steps nor trained parameters", "objective.cost", "leave the cost out")
    data = {name: load_tune(where.data_root, base.config.benchmark) for name, base in bases.items()}
    name = _study_name(search, where.data_root, bases, data)
    folder = where.storage / "search" / name
    store = TrackingStore.connect(where.tracking_uri, f"mgmrn/search/{search.name}")
    left = send_leftovers(folder, store, END_SECONDS)
    study = Study(name, study_storage, config, space)
    _wait_for_other_driver(study, search.name)
    size, kept = study.size, study.optuna.user_attrs.get(_OUTCOME)
    if kept is not None and size >= config.trials and not force:
        if left:
            say(f"error: {left}")
        outcome = SearchOutcome.model_validate_json(kept)
        # Its folders may have been moved since.
        best = tuple(str(folder / "report" / Path(one).name) for one in outcome.best_configs)
        places = {"best_configs": best, "tracking_uri": redact_address(where.tracking_uri)}
        return outcome.model_copy(update={"status": "cached", "is_tracked": left is None, **places})
    if 0 < size < config.trials and not (resume or force):
        message = f"the search {search.name} was begun and has {size} of {config.trials} trials"
        raise UserError(message, search.label, "add --resume to go on with it, or --force to start again")
    with launch_session(where, config.workers * (concurrency or 1), data.values(), [folder]) as hosts:
        concurrency, placed = place_trials(hosts, where, config.trials, config.workers, concurrency)
        if force:
            study.delete()
            folder.delete()
        study = Study(name, study_storage, config, space)
        study.begin_with(space.encoded(next(iter(bases.values())).config))
        study.optuna.set_user_attr(_DRIVER, driver_tag())
        names = ",".join(split.benchmark for split in data.values())
        tags = {"mgmrn.kind": "search", "mgmrn.study": name, "mgmrn.benchmark": names}
        store.describe(EXPERIMENT_NOTE, run_view("tune", config.objective.metric, tuple(config.space)))
        with parent_run(store, folder, name, f"search {search.name}", tags, data.values(), restart=force) as parent:
            # Modules that take seconds to load, which a search that was finished before does not wait for.
            from pipeline.search.board import Board
            from pipeline.search.course import run_course
            from pipeline.search.director import Search
            from pipeline.search.warm import warm_cache
            from pipeline.trials.director import Site

            cpus = placed.cpus_per_worker
            slots = min(concurrency * placed.workers, max(host.cpus for host in hosts) // cpus)
            warm_cache(space, bases, where.data_root, max(1, slots) * cpus, placed.gpus_per_worker)
            opening = Opening(store, replace(where, storage=folder), name, parent, placed)
            site, board = Site(opening, concurrency), Board(search.name, config.trials, config.objective.metric.upper())
            with study_errors(study_storage):
                parts = Search(config, space, bases, study, site, data, board)
                outcome = run_course(parts, search.name, budget_hours, redact_address(where.tracking_uri))
            site.clerk.finish()
            with (folder / "report").fetched() as report, parent.artifacts() as files:
                shutil.copytree(report, files, dirs_exist_ok=True)
            parent.note = note(outcome)[:NOTE_LIMIT]
            if outcome.status == "failed":
                parent.status, parent.reason = "FAILED", "no trial finished"
    study.optuna.set_user_attr(_OUTCOME, json.dumps(outcome.model_dump(mode="json")))
    return outcome.model_copy(update={"is_tracked": parent.is_tracked})


def _wait_for_other_driver(study: Study, name: str) -> None:
    is_told = False
    while (driver := Driver.parse(study.optuna.user_attrs.get(_DRIVER, ""))) and not driver.is_this_process:
        if driver.is_dead or _OUTCOME in study.optuna.user_attrs:
            return
        if not is_told:
            say(f"the search {name} is being run by process {driver.pid} on {driver.host}: waiting for it to end")
        is_told = True
        time.sleep(POLL_SECONDS)


def _study_name(
    search: SearchFile, root: Path, bases: Mapping[str | None, ComposedConfig], data: Mapping[str | None, TuneData]
) -> str:
    """Name of the study, with a hash of everything that old trials depend on; the number of trials is no part of it."""
    science = search.config.model_dump(mode="json", exclude={"trials", "confirm_seeds", "workers"})
    groups = [group_hash(resolve_weights(base.config, root), data[name].digest) for name, base in bases.items()]
    text = json.dumps([science, groups], sort_keys=True)
    return f"{search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
