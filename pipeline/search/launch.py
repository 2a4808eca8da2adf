"""`search`, from the request to the answer: checked before anything starts, run, and the winner compared with the base.

Only the `tune` split is ever loaded here. The score of the best of many trials flatters it; what is reported is its comparison with the
base over seeds that the search has not seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgmrn.data.splits import TuneData, check_images_exist, evaluation_images, load_tune
from mgmrn.errors import UserError
from pipeline.analysis.paired import paired_difference, summarise
from pipeline.compose import ComposedConfig, resolve_weights, show
from pipeline.console import say
from pipeline.identity import group_hash
from pipeline.search.board import Board
from pipeline.search.config import SearchConfig, SearchFile
from pipeline.search.director import Bench, ListDirector, SearchDirector
from pipeline.search.objective import METRIC_KEYS, final_ranks
from pipeline.search.plan import Pool
from pipeline.search.report import importances, write_study
from pipeline.search.request import Comparison, SearchOutcome, SearchRequest
from pipeline.search.runner import run_trials
from pipeline.search.space import Space
from pipeline.search.study import Record, Study, forget_study, study_size
from pipeline.search.tracked_trial import Clerk
from pipeline.search.warm import warm_cache
from pipeline.tracking.spool import replay_leftovers
from pipeline.tracking.store import TrackingStore, driver_is_dead, driver_tag
from pipeline.train.cluster import Host, check_room_here, place, ray_session, rooms
from pipeline.train.parent import parent_run
from pipeline.train.tracked import DRAIN_SECONDS

FRESH_SEEDS_FROM = 1000
"""Seeds of the comparison at the end; searches use small ones."""

_DRIVER, _OUTCOME = "driver", "outcome"


def run_search(request: SearchRequest) -> SearchOutcome:
    """Runs a search, or goes on with one.

    Raises:
        UserError: for a bad space, config or data set, a study that would need `--resume`, a database out of reach;
            nothing was started.
        ResourceError: when not even one trial can ever be placed.
        TrackingError: when the tracking store cannot be reached.
    """
    search = request.search
    config = search.config if request.trials is None else search.config.model_copy(update={"trials": request.trials})
    request = replace(request, data_root=request.data_root.resolve(), storage=request.storage.resolve())
    space = Space(search)
    benchmarks: tuple[str | None, ...] = config.benchmarks or (None,)
    bases = {name: space.compose({}, name) for name in benchmarks}
    data = {name: load_tune(request.data_root, base.config.benchmark) for name, base in bases.items()}
    name = _study_name(search, bases, data, request.data_root)
    folder = request.storage / "search" / name
    store = TrackingStore.connect(request.tracking_uri, f"mgmrn/search/{search.name}")
    _check_beginning(request, name, config.trials, folder)
    if (known := _known_outcome(request, name, config, space)) is not None:
        return known
    check_room_here(request.address, config.workers * (request.concurrency or 1), request.cpus_per_worker)
    for split in data.values():
        check_images_exist(split.train.followed_by(evaluation_images(split)))
    for problem in replay_leftovers(folder, store, DRAIN_SECONDS):
        say(f"still waiting to be tracked: {problem}")
    clerk = Clerk()
    with ray_session(request.address, dashboard=True) as hosts:
        pool = _pool(request, config, hosts)
        study = Study(name, request.study_storage, config, space)
        study.begin_with(space.encoded(next(iter(bases.values())).config))
        study.remember(_DRIVER, driver_tag())
        with parent_run(store, *_parent(search, name, data), anew=request.force) as parent:
            bench = Bench(name, parent.run_id, store, data, request.data_root, folder, pool, clerk)
            slots = min(pool.concurrency * pool.workers, max(host.cpus for host in hosts) // pool.cpus_per_worker)
            warm_cache(space, bases, request.data_root, max(1, slots) * pool.cpus_per_worker, pool.gpus_per_worker)
            outcome = _search(request, config, study, space, bench, bases)
            clerk.finish()
            store.log_artifacts(parent.run_id, folder / "report")
            if outcome.status == "failed":
                parent.status, parent.reason = "FAILED", "no trial finished"
    study.remember(_OUTCOME, json.dumps(outcome.to_json()))
    return outcome


def _check_beginning(request: SearchRequest, name: str, trials: int, folder: Path) -> None:
    """What there is of an earlier call is gone on with when that is asked for, and forgotten when that is."""
    if request.force:
        forget_study(name, request.study_storage)
        shutil.rmtree(folder, ignore_errors=True)
        return
    size = study_size(name, request.study_storage)
    if not size or size >= trials or request.resume:
        return
    raise UserError(
        f"the search {request.search.name} was begun and has {size} of {trials} trials",
        request.search.label,
        "add --resume to go on with it, or --force to start anew",
    )


def _known_outcome(request: SearchRequest, name: str, config: SearchConfig, space: Space) -> SearchOutcome | None:
    """The answer of a search that has ended; refuses one that another process is at."""
    size = study_size(name, request.study_storage)
    if size is None:
        return None
    study = Study(name, request.study_storage, config, space)
    driver = study.remembered(_DRIVER)
    if driver and not driver_is_dead(driver) and driver != driver_tag():
        raise UserError(
            f"the search {request.search.name} is being run by another process ({driver.split(':')[1]} on "
            f"{driver.split(':')[0]})",
            name,
            "wait for it, or end that process first",
        )
    outcome = study.remembered(_OUTCOME)
    if outcome is None or size < config.trials:
        return None
    return SearchOutcome.from_json(json.loads(outcome), "cached")


def _search(
    request: SearchRequest,
    config: SearchConfig,
    study: Study,
    space: Space,
    bench: Bench,
    bases: Mapping[str | None, ComposedConfig],
) -> SearchOutcome:
    """Trials, then the winner against the base."""
    tune_folder = bench.storage / "tune"
    metric = config.objective.metric.upper()
    deadline = None if request.budget_hours is None else time.monotonic() + 3600 * request.budget_hours
    with Board(request.search.name, config.trials, metric) as board:
        for record in study.records():
            if record.state in ("finished", "stopped", "failed"):
                board.remember(record.number, record.point, record.state, record.values[0] if record.values else None)
        references = _references(config, bench, bases, board, tune_folder)
        run_trials(SearchDirector(config, study, space, bench, references, board, deadline), bench.pool, tune_folder)
        best = best_record(config, study.records())
        comparisons: tuple[Comparison, ...] = ()
        if best is not None:
            comparisons = _compare(config, space, bench, bases, best, board, tune_folder)
    shutil.rmtree(tune_folder, ignore_errors=True)
    report = bench.storage / "report"
    targets = [config.objective.metric] + ([] if config.objective.cost == "none" else [config.objective.cost])
    write_study(report, study.optuna, study.records(), f"Search {request.search.name}", targets)
    best_configs = () if best is None else _write_best(report, space, best, bases)
    return SearchOutcome(
        status="finished" if best else "failed",
        study=bench.study_name,
        trials=_counts(study.records()),
        best=None if best is None else {"trial": best.number, "values": list(best.values), "point": dict(best.point)},
        comparisons=comparisons,
        importances=importances(study.optuna, len(targets)),
        best_configs=best_configs,
        parent_run_id=bench.parent_run_id,
        tracking_uri=request.tracking_uri,
    )


def best_record(config: SearchConfig, records: Sequence[Record]) -> Record | None:
    """The finished trial with the largest score, ranks being worked out anew among all finished trials."""
    finished = [record for record in records if record.state == "finished" and record.values]
    if not finished:
        return None
    if len(config.benchmarks) > 1 and config.objective.combine == "mean_rank":
        ranks = final_ranks({record.number: record.scores[max(record.scores)] for record in finished})
        return max(finished, key=lambda record: ranks[record.number])
    return max(finished, key=lambda record: record.values[0])


def _references(
    config: SearchConfig,
    bench: Bench,
    bases: Mapping[str | None, ComposedConfig],
    board: Board,
    tune_folder: Path,
) -> dict[str | None, float]:
    """The base's own score on each benchmark, where several are to be brought to one scale; else 1."""
    if len(bases) == 1 or config.objective.combine == "mean_rank":
        return dict.fromkeys(bases, 1.0)
    cells = [bench.cell(base, name, config.seeds[0], "base") for name, base in bases.items()]
    director = ListDirector(cells, bench, board)
    if director.is_needed:
        run_trials(director, bench.pool, tune_folder)
    scores = {}
    for name, run in zip(bases, director.runs, strict=True):
        if not run.figures:
            raise UserError(
                f"the base could not be run on {name}, so that scores cannot be brought to one scale",
                config.base,
                "see the error above, or set objective.combine: mean_rank",
            )
        scores[name] = run.figures[METRIC_KEYS[config.objective.metric]]
    return scores


def _compare(
    config: SearchConfig,
    space: Space,
    bench: Bench,
    bases: Mapping[str | None, ComposedConfig],
    best: Record,
    board: Board,
    tune_folder: Path,
) -> tuple[Comparison, ...]:
    """Best and base on every benchmark over fresh seeds, paired by seed."""
    board.say(f"comparing trial {best.number} with the base over {config.confirm_seeds} fresh seeds")
    seeds = range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + config.confirm_seeds)
    cells = [
        bench.cell(composed, name, seed, variant)
        for name, base in bases.items()
        for seed in seeds
        for variant, composed in (("best", space.compose(best.point, name)), ("base", base))
    ]
    director = ListDirector(cells, bench, board)
    if director.is_needed:
        run_trials(director, bench.pool, tune_folder)
    key = METRIC_KEYS[config.objective.metric]
    comparisons = []
    for position, name in enumerate(bases):
        runs = director.runs[2 * len(seeds) * position : 2 * len(seeds) * (position + 1)]
        pairs = [
            (first.figures[key], second.figures[key])
            for first, second in zip(runs[::2], runs[1::2], strict=True)
            if first.figures and second.figures
        ]
        ours = [run.figures[key] for run in runs[::2] if run.figures]
        theirs = [run.figures[key] for run in runs[1::2] if run.figures]
        comparisons.append(
            Comparison(
                benchmark=bench.data[name].benchmark,
                metric=key,
                best=summarise(ours) if ours else None,
                base=summarise(theirs) if theirs else None,
                difference=paired_difference(*zip(*pairs, strict=True)) if pairs else None,
            )
        )
    figures = _figures(comparisons)
    bench.clerk.do(lambda: bench.store.log_metrics(bench.parent_run_id, 0, figures, int(time.time() * 1000)))
    return tuple(comparisons)


def _figures(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """The comparison as metrics of the parent."""
    figures: dict[str, float] = {}
    for one in comparisons:
        prefix = f"{one.benchmark}/" if len(comparisons) > 1 else ""
        for variant, summary in (("best", one.best), ("base", one.base)):
            if summary is not None:
                figures[f"confirm/{prefix}{variant}/mean"] = summary.mean
                figures[f"confirm/{prefix}{variant}/n"] = float(summary.n)
                if summary.std is not None:
                    figures[f"confirm/{prefix}{variant}/std"] = summary.std
        if one.difference is not None:
            figures[f"confirm/{prefix}difference/mean"] = one.difference.mean
            if one.difference.low is not None and one.difference.high is not None:
                figures[f"confirm/{prefix}difference/low"] = one.difference.low
                figures[f"confirm/{prefix}difference/high"] = one.difference.high
    return figures


def _write_best(
    report: Path, space: Space, best: Record, bases: Mapping[str | None, ComposedConfig]
) -> tuple[str, ...]:
    """The winner's full config, one file per benchmark; returns their paths."""
    paths = []
    for name in bases:
        path = report / ("best.yaml" if len(bases) == 1 else f"best-{name}.yaml")
        header = f"# The best of a search (trial {best.number}), chosen on the tune split.\n"
        path.write_text(header + show(space.compose(best.point, name)), encoding="utf-8")
        paths.append(str(path))
    return tuple(paths)


def _pool(request: SearchRequest, config: SearchConfig, hosts: tuple[Host, ...]) -> Pool:
    """As many trials at once as fit, one CPU for each worker unless more is asked for; never more than the cluster has."""
    if request.concurrency is not None:
        placed = place(hosts, request.concurrency * config.workers, request.cpus_per_worker, request.gpus_per_worker)
        return Pool(request.concurrency, config.workers, placed.cpus_per_worker, placed.gpus_per_worker)
    one = place(hosts, config.workers, request.cpus_per_worker or 1, request.gpus_per_worker)
    room = rooms(hosts, one.cpus_per_worker, one.gpus_per_worker)
    concurrency = max(1, min(room // config.workers, config.trials))
    if request.cpus_per_worker is None:
        one = place(hosts, concurrency * config.workers, None, one.gpus_per_worker)
    return Pool(concurrency, config.workers, one.cpus_per_worker, one.gpus_per_worker)


def _study_name(
    search: SearchFile, bases: Mapping[str | None, ComposedConfig], data: Mapping[str | None, TuneData], data_root: Path
) -> str:
    """Changes with all that would make old trials say nothing about new ones; not with the number of trials."""
    science = search.config.model_dump(mode="json", exclude={"trials", "confirm_seeds", "workers"})
    groups = [group_hash(resolve_weights(base.config, data_root), data[name].digest) for name, base in bases.items()]
    text = json.dumps([science, groups], sort_keys=True)
    return f"{search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _parent(search: SearchFile, name: str, data: Mapping[str | None, TuneData]) -> tuple[str, str, dict[str, str]]:
    standin = any(one.standin for one in data.values())
    tags = {
        "mgmrn.kind": "search",
        "mgmrn.study": name,
        "mgmrn.benchmark": ",".join(one.benchmark for one in data.values()),
        "mgmrn.standin": str(standin).lower(),
    }
    return name, f"search {search.name}" + (" (stand-in)" if standin else ""), tags


def _counts(records: Sequence[Record]) -> dict[str, int]:
    states = [record.state for record in records]
    return {state: states.count(state) for state in ("finished", "stopped", "failed", "repeated") if state in states}
