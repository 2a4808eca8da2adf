"""What is not needed any more of a tracking store and of local folders, and its removal, which may be repeated after an interruption.

A run stays while its driver or that of its launch lives, while its spool has entries that were not sent, while it is registered or is a seed
with which `promote` compares a registered one, and while a link, a reproduction or a page cites it. Of the others these go:

- `failed`: runs that failed for good; launches without a result, unless a run below stays.
- `superseded`: runs of a config and split of which the experiment has a later finished one. A finished one below a launch of `train` goes
  with the launch, once all below are superseded; below a grid, whose pages cite runs, alone; below a search never.
- `checkpoints`: storage folders of finished, wholly tracked runs, and of runs that were deleted in the store.
- `caches`: features that no shipped or named experiment and no shipped grid reads with the data root at hand, unless a driver lives.
- `reports`: pages that the run of their grid has too.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mgmrn.config import ExperimentConfig
from mgmrn.data.splits import final_data, tune_data
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import ResourceError, UserError
from pipeline import places
from pipeline.ablation.config import load_ablation
from pipeline.ablation.grid import make_grid
from pipeline.claims import living_holder, taken
from pipeline.config.compose import load_experiment, resolve_weights
from pipeline.config.files import config_names
from pipeline.spool import SENT, Sent, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.registry import registered_runs
from pipeline.tracking.store import RUN_ID, TrackedRun, TrackingStore
from pipeline.where import Where

Kind = Literal["failed", "superseded", "checkpoints", "caches", "reports"]
Verdicts = dict[str, tuple[Kind, str]]
"""Id of a run → kind and reason for which it or its folder may go."""
_CACHE = re.compile(r"\.?(?P<name>(?P<digest>[0-9a-f]{24})-[\w-]+)")
"""Name of a cache's folder, and of what stands beside it."""


@dataclass(frozen=True)
class Leftover:
    """Something that may go: paths, a run of the store, or both."""

    kind: Kind
    name: str
    reason: str
    paths: tuple[StoragePath, ...]
    run: TrackedRun | None = None

    def to_json(self) -> dict[str, Any]:
        size, run_id = sum(sum(path.sizes().values()) for path in self.paths), self.run.run_id if self.run else None
        own = {"bytes": size, "run_id": run_id, "paths": [str(path) for path in self.paths]}
        return {"kind": self.kind, "name": self.name, "reason": self.reason} | own


def find_leftovers(store: TrackingStore, where: Where, named: Sequence[str]) -> list[Leftover]:
    """All that may go; `named` are experiments, besides the shipped ones, whose caches stay.

    Raises `UserError` for an unknown experiment, and `TrackingError` when the store is unreachable.
    """
    configs = [load_experiment(name).config for name in named]
    runs = {run.run_id: run for run in store.runs_of(("mgmrn/%",), "")}
    folders, busy = _run_folders(where.storage)
    logged = {run_id: store.pages(run_id) for run_id, run in runs.items() if _is(run, "ablation")}
    local = {page: page.read_text(encoding="utf-8", errors="replace") for page in sorted(places.REPORTS.glob("*.html"))}
    cited = RUN_ID.findall("\n".join([*local.values(), *(text for one in logged.values() for text in one.values())]))
    led = {key for key, run in runs.items() if run.status in ("RUNNING", "SCHEDULED") and not run.is_abandoned}
    held = busy | held_runs(runs, registered_runs(store), led)
    going = going_runs(runs, held.union(cited), {run_id for run_id, pages in logged.items() if pages})
    deleted = [key for key in folders if key not in {*runs, *held} and store.state_of(key) == "deleted"]
    free = free_folders(runs, [key for key in folders if key not in {*held, *going}], deleted)
    found = []
    for run_id, (kind, reason) in (going | free).items():
        run, paths = runs.get(run_id), tuple(folders[key] for key in folders.keys() & {run_id})
        name = " ".join((run.name, run.tags.get("mgmrn.split", ""))) if run else paths[0].name
        found.append(Leftover(kind, name, reason, paths, None if run_id in free else run))
    found += [] if led else _unused_caches(configs, where.data_root)
    for page, text in local.items():
        if any(pages.get(f"report/{page.name}") == text for pages in logged.values()):
            found.append(Leftover("reports", page.name, "also in the run of its grid", (StoragePath.parse(page),)))
    return found


def remove(store: TrackingStore, leftover: Leftover) -> None:
    """Remove a leftover; a `ResourceError` where a driver has begun to work on it, a `TrackingError` when the store is unreachable."""
    run = leftover.run
    with taken(leftover.paths if leftover.kind not in ("caches", "reports") else ()):
        now = run and store.get(run.run_id)
        if run and now and (now.status, now.tags) != (run.status, run.tags):
            raise ResourceError(f"{leftover.name} has changed since it was found", "give the same command again")
        for path in leftover.paths:
            _remove(path)
        if run:
            store.delete_run(run)


def held_runs(runs: Mapping[str, TrackedRun], registered: Collection[str], led: set[str]) -> set[str]:
    """Ids of runs that stay with their folders, whatever they are; `led` are those on which a driver may work."""
    group = {run_id: _tags(run, "group_hash", "code_digest", "split") for run_id, run in runs.items()}
    compared = {group[run_id] for run_id in runs.keys() & registered}
    return {key for key, run in runs.items() if group[key] in compared or led & {key, run.parent_run_id}}


def going_runs(runs: Mapping[str, TrackedRun], held: Collection[str], compared: Collection[str]) -> Verdicts:
    """The runs that may go, launches first; `runs` begin with the latest.

    `compared` are ids of grids that have a comparison: they cite the runs that it names, other launches all finished runs below them.
    """
    found: Verdicts = {}
    finished, below = set(), defaultdict(set)
    searches = {run_id for run_id, run in runs.items() if _is(run, "search")}
    for run_id, run in runs.items():
        below[run.parent_run_id].add(run_id)
        config = (run.experiment_id, *_tags(run, "config_hash", "split"))
        if _is(run, "run", "reproduction") and run.status == "FAILED" and not run.is_cut_off:
            found[run_id] = "failed", run.tags.get("mgmrn.stop_reason", "")
        elif not _is(run, "run") or run.parent_run_id in searches:
            continue
        elif config in finished and (run.status == "FINISHED" or run.is_cut_off):
            found[run_id] = "superseded", "a later run of its config is finished"
        elif run.status == "FINISHED":
            finished.add(config)
    staying = (run for run_id, run in runs.items() if run_id not in found)
    linked = {run_id for run in staying for run_id in _tags(run, "linked_run_id", "reproduces")}
    found = {run_id: one for run_id, one in found.items() if run_id not in {*held, *linked}}
    launches: Verdicts = {}
    for run_id, run in runs.items():
        if _is(run, "launch", "ablation", "search") and run_id not in held and found.keys() >= below[run_id]:
            if run.status != "FINISHED":
                launches[run_id] = "failed", "a launch without a result"
            elif _is(run, "launch") and below[run_id]:
                launches[run_id] = "superseded", "all its runs are"
    citing = runs.keys() - launches.keys() - set(compared)
    cited = {key for key, run in runs.items() if run.status == "FINISHED" and run.parent_run_id in citing}
    return launches | {run_id: one for run_id, one in found.items() if run_id not in cited}


def free_folders(runs: Mapping[str, TrackedRun], folders: Collection[str], deleted: Collection[str]) -> Verdicts:
    """Those of some folders that may go while their run stays or is deleted; a search that goes on reads those of its finished trials."""
    going_on = {key for key, run in runs.items() if _is(run, "search") and run.status != "FINISHED"}
    finished = {key for key, run in runs.items() if run.status == "FINISHED" and run.parent_run_id not in going_on}
    free: Verdicts = {key: ("checkpoints", "finished, and wholly tracked") for key in folders if key in finished}
    return free | {key: ("checkpoints", "its run was deleted") for key in deleted}


def _run_folders(storage: StoragePath) -> tuple[dict[str, StoragePath], set[str]]:
    """Run id → folder in the storage, and ids of those that a living driver holds or whose spool has entries that were not sent."""
    folders, busy = {}, set()
    for name in sorted(name for name in storage.sizes() if name.endswith(f"/{SENT}")):
        spool = Spool((storage / name).parent)
        if (sent := Sent.load(spool)) and sent.run_id:
            folders[sent.run_id] = spool.folder
            if not all(map(sent.has, spool.read())) or living_holder(spool.folder):
                busy.add(sent.run_id)
    return folders, busy


def _unused_caches(named: Sequence[ExperimentConfig], data_root: Path) -> list[Leftover]:
    root, reason = places.CACHE, f"no experiment on {data_root} reads it"
    found = {match["name"]: match["digest"] for path in root.glob("*-*") if (match := _CACHE.match(path.name))}
    used = set(_used_digests([*named, *_shipped()], data_root)) if found else ()
    names = sorted(name for name, digest in found.items() if digest not in used)
    paths = {name: (root / name, *root.glob(f".{name}.*")) for name in names}
    return [Leftover("caches", name, reason, tuple(map(StoragePath.parse, own))) for name, own in paths.items()]


def _used_digests(configs: Sequence[ExperimentConfig], data_root: Path) -> Iterator[str]:
    from mgmrn.data.feature_cache import cache_digest
    from mgmrn.feed import cached_pools

    different = {(one.benchmark, one.model.backbone): one for one in configs if one.cache_features}
    for config in different.values():
        with suppress(UserError):  # Its data or weights are not there.
            backbone, benchmark = resolve_weights(config, data_root).model.backbone, config.benchmark
            read = load_benchmark(data_root, benchmark)
            for data in (tune_data(read, benchmark), final_data(read)):
                yield from (cache_digest(images, benchmark.images, backbone) for images in cached_pools(data))


def _shipped() -> Iterator[ExperimentConfig]:
    yield from (load_experiment(name).config for name in config_names("experiment"))
    for grid in map(make_grid, map(load_ablation, config_names("ablation"))):
        yield from (one.config for variant in grid.variants for one in variant.configs.values())


def _tags(run: TrackedRun, *names: str) -> tuple[str | None, ...]:
    return tuple(run.tags.get(f"mgmrn.{name}") for name in names)


def _is(run: TrackedRun, *kinds: str) -> bool:
    return run.tags.get("mgmrn.kind") in kinds


def _remove(path: StoragePath) -> None:
    """Remove a file or folder; of a run's folder last the file with the id, by which the rest of an interrupted removal is found."""
    if (path / SENT).exists():
        for name in path.names():
            if name != SENT:
                (path / name).delete()
    path.delete()
    if path.exists():
        raise ResourceError(
            f"{path} cannot be removed", "check the permissions of its folder, then give the same command again"
        )
