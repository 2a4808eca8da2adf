"""`ablate`, from the request to the answer: what is missing of a grid is run, what is there is taken, and both stand below one parent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mgmrn.data.splits import SplitData, check_images_exist, evaluation_images
from mgmrn.errors import ResourceError
from pipeline.ablation.cells import GridCell, MissingCell, make_cells
from pipeline.ablation.grid import Grid, make_grid
from pipeline.ablation.plan import PlannedCell, plan_cells
from pipeline.ablation.request import RUN_BY, AblationOutcome, AblationRequest, Mode, Status
from pipeline.ablation.results import comparisons
from pipeline.ablation.track import PARENT_KIND, log_grid
from pipeline.console import duration, say
from pipeline.driver import heartbeat
from pipeline.redaction import redact
from pipeline.tracking.store import TrackingStore
from pipeline.train.cluster import check_room_here, ray_session
from pipeline.train.placement import Host
from pipeline.train.storage import check_writable, explained
from pipeline.train.tracked import (
    END_SECONDS,
    PARENT_SPLIT,
    PATIENCE_SECONDS,
    Opening,
    ParentRun,
    epoch_lines,
    parent_run,
    patiently,
    send_leftovers,
)
from pipeline.trials.known import KnownRuns
from pipeline.trials.plan import Pool
from pipeline.trials.site import make_pool

if TYPE_CHECKING:
    from pipeline.trials.list_director import Task


@dataclass(frozen=True)
class Survey:
    """A grid, and what there is of it."""

    grid: Grid
    store: TrackingStore
    cells: tuple[GridCell | MissingCell, ...]

    def plan(self) -> list[PlannedCell]:
        """Every cell as the store knows it now."""
        return plan_cells(self.cells, KnownRuns.read(self.store))


def survey(request: AblationRequest) -> Survey:
    """Reads data and configs, and connects to the store.

    Raises:
        UserError: for a bad grid or a config whose weights are not there.
        TrackingError: when the tracking store cannot be reached.
    """
    grid = make_grid(request.file)
    store = TrackingStore.connect(request.where.tracking_uri, f"mgmrn/ablation/{request.file.name}")
    return Survey(grid, store, tuple(make_cells(grid, request.where.data_root.resolve())))


def run_ablation(request: AblationRequest) -> AblationOutcome:
    """Launches what the mode asks for.

    Raises:
        UserError: for a bad grid or data set; nothing was started.
        ResourceError: when no run can ever be placed, the predicted time is over the budget, or the storage is full or read-only.
        TrackingError: when the tracking store cannot be reached.
        UntrackedError: when the store went away in mid-run.
    """
    request = replace(request, where=replace(request.where.absolute(), storage=_storage(request)))
    surveyed = survey(request)
    if left := send_leftovers(request.where.storage, surveyed.store, END_SECONDS):
        say(str(left))
    planned = surveyed.plan()
    todo = _once_each([one for one in planned if one.state in RUN_BY[request.mode] or one.state == "running"])
    key = parent_key(surveyed)
    known = surveyed.store.find_finished(key, PARENT_SPLIT)
    if not todo and known is not None:
        (primary,) = comparisons(surveyed.grid, planned, request.file.config.primary)
        return AblationOutcome("cached", 0, tuple(planned), primary, known.run_id, redact(request.where.tracking_uri))
    for split in _splits(todo):
        check_images_exist(split.train.followed_by(evaluation_images(split)))
    if todo:
        check_writable(request.where.storage)
        workers = request.file.config.workers * (request.concurrency or 1)
        check_room_here(request.where.address, workers, request.where.cpus_per_worker)
    with explained(request.where.storage), heartbeat(request.where.storage), ExitStack() as stack:
        pool = _pool(request, todo, stack.enter_context(ray_session(request.where.address))) if todo else None
        parent = stack.enter_context(
            parent_run(surveyed.store, request.where.storage, key, *_names(surveyed), again=known)
        )
        launched, status = _launch(request, surveyed, todo, pool, parent) if pool else (0, "finished")
        # What a grid came to is read from the store, where all of it has to be first.
        if left := send_leftovers(request.where.storage, surveyed.store, PATIENCE_SECONDS):
            raise left
        planned = patiently(surveyed.plan, PATIENCE_SECONDS)
        if any(one.state == "failed" for one in planned):
            parent.status, parent.reason, status = "FAILED", "a run failed", "failed"
        compared = comparisons(surveyed.grid, planned)
        patiently(partial(log_grid, surveyed.store, parent.run_id, planned, compared), PATIENCE_SECONDS)
    return AblationOutcome(
        status, launched, tuple(planned), compared[0], parent.run_id, redact(request.where.tracking_uri)
    )


def _storage(request: AblationRequest) -> Path:
    """Folder of the run folders of all grids."""
    return request.where.storage.resolve() / "ablation"


def _splits(todo: Sequence[PlannedCell]) -> Iterator[SplitData]:
    """The data that the cells will read, once each."""
    cells = {one.cell.benchmark: one.cell for one in todo if isinstance(one.cell, GridCell)}
    for cell in cells.values():
        yield cell.tune.data
        if cell.final_data is not None:
            yield cell.final_data


def _pool(request: AblationRequest, todo: Sequence[PlannedCell], hosts: tuple[Host, ...]) -> Pool:
    """Room for the cells, checked against the budget."""
    workers, cpus, gpus = request.file.config.workers, request.where.cpus_per_worker, request.where.gpus_per_worker
    pool = make_pool(hosts, len(todo), workers, request.concurrency, cpus, gpus)
    _check_budget(_budget(request), todo, pool)
    return pool


def _budget(request: AblationRequest) -> float | None:
    """Hours of the launch."""
    return request.budget_hours if request.budget_hours is not None else request.file.config.budget_hours


def _launch(
    request: AblationRequest, surveyed: Survey, todo: Sequence[PlannedCell], pool: Pool, parent: ParentRun
) -> tuple[int, Status]:
    """Runs the cells; answers with how many were begun, and the launch's status."""
    # Ray Tune takes seconds to load, which a launch with nothing to do does not wait for.
    from pipeline.trials.list_director import ListDirector
    from pipeline.trials.runner import run_trials
    from pipeline.trials.site import Clerk, Site
    from pipeline.trials.trial import run_trial

    opening = Opening(request.file.name, parent.run_id, pool.placement)
    site = Site(surveyed.store, opening, request.where.data_root, request.where.storage, pool, Clerk())
    tasks = [_task(one, request.mode) for one in todo if isinstance(one.cell, GridCell)]
    hours = _budget(request)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    director = ListDirector(tasks, site, say, lambda run: epoch_lines(f"{run.name} {run.split}"), deadline)
    run_trials(director, pool, site.tune_folder, run_trial)
    site.clerk.finish()
    if not director.left:
        return len(tasks), "finished"
    say(f"the budget is used up: {director.left} cells were not begun; the same command goes on with them")
    parent.status, parent.reason = "KILLED", "budget"
    return len(tasks) - director.left, "stopped"


def _task(planned: PlannedCell, mode: Mode) -> Task:
    """A planned cell as it is run; stale and forced cells start again."""
    from pipeline.trials.list_director import Task

    assert isinstance(planned.cell, GridCell)
    anew = mode == "force" or planned.state == "stale"
    final = None if planned.cell.final_data is None else planned.cell.final
    return Task(planned.cell.tune, final, None if anew else planned.calibration, anew)


def _once_each(todo: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Two variants may be one config on some benchmark; it is run once, under the first one's name."""
    found = {one.cell.tune.config_hash: one for one in reversed(todo) if isinstance(one.cell, GridCell)}
    return [one for one in todo if one in found.values()]


def _check_budget(hours: float | None, todo: Sequence[PlannedCell], pool: Pool) -> None:
    """By the cells whose cost is known; the others may only add to it."""
    costs = [one.cost.seconds for one in todo if one.cost is not None]
    predicted = sum(costs) / pool.concurrency
    if hours is not None and predicted > 3600 * hours:
        raise ResourceError(
            f"{len(costs)} of {len(todo)} cells would take about {duration(predicted)}, "
            f"more than the budget of {duration(3600 * hours)}",
            "raise --budget-hours, or run fewer variants, benchmarks or seeds",
        )


def parent_key(surveyed: Survey) -> str:
    """Changes with every cell of the grid: a grid that was changed gets a parent of its own."""
    parts = [
        f"{one.benchmark} {one.variant} {one.seed} {one.tune.config_hash if isinstance(one, GridCell) else 'missing'}"
        for one in surveyed.cells
    ]
    return hashlib.sha256("\n".join([surveyed.grid.file.name, *parts]).encode()).hexdigest()[:16]


def _names(surveyed: Survey) -> tuple[str, dict[str, str]]:
    """Name and tags of the grid's own run."""
    return f"ablation {surveyed.grid.file.name}", {
        "mgmrn.kind": PARENT_KIND,
        "mgmrn.study": surveyed.grid.file.name,
        "mgmrn.benchmark": ",".join(dict.fromkeys(one.benchmark for one in surveyed.cells)),
    }
