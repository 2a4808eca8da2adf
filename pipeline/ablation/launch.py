"""`ablate`, from the request to the answer: what is missing of a grid is run, what is there is taken, and both stand below one parent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mgmrn.data.splits import check_images_exist, evaluation_images
from mgmrn.errors import ResourceError
from pipeline.ablation.cells import GridCell, MissingCell, make_cells
from pipeline.ablation.grid import Grid, make_grid
from pipeline.ablation.plan import KnownRuns, PlannedCell, plan_cells, total_cost
from pipeline.ablation.request import RUN_BY, AblationOutcome, AblationRequest, Status
from pipeline.ablation.results import comparisons
from pipeline.ablation.track import PARENT_KIND, log_grid
from pipeline.console import duration, say
from pipeline.tracking.spool import replay_leftovers
from pipeline.tracking.store import TrackingStore
from pipeline.train.cluster import check_room_here, ray_session
from pipeline.train.parent import PARENT_SPLIT, ParentRun, parent_run
from pipeline.train.tracked import DRAIN_SECONDS, Opening
from pipeline.trials.plan import Pool
from pipeline.trials.pool import make_pool


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
    store = TrackingStore.connect(request.tracking_uri, f"mgmrn/ablation/{request.file.name}")
    return Survey(grid, store, tuple(make_cells(grid, request.data_root.resolve())))


def run_ablation(request: AblationRequest) -> AblationOutcome:
    """Launches what the mode asks for.

    Raises:
        UserError: for a bad grid or data set; nothing was started.
        ResourceError: when no run can ever be placed, or the predicted time is over the budget.
        TrackingError: when the tracking store cannot be reached.
    """
    request = replace(request, data_root=request.data_root.resolve(), storage=request.storage.resolve())
    surveyed = survey(request)
    planned = surveyed.plan()
    todo = [one for one in planned if one.state in RUN_BY[request.mode]]
    key = parent_key(surveyed)
    known = surveyed.store.find_finished(key, PARENT_SPLIT)
    if not todo and known is not None:
        return _outcome(request, surveyed, planned, known.run_id, "cached", 0)
    for cell in {one.cell.benchmark: one.cell for one in todo}.values():
        assert isinstance(cell, GridCell)
        splits = [cell.tune.data, *([cell.final_data] if cell.final_data else [])]
        for split in splits:
            check_images_exist(split.train.followed_by(evaluation_images(split)))
    label = " (stand-in)" if _is_standin(surveyed) else ""
    name = f"ablation {request.file.name}{label}"
    with parent_run(surveyed.store, key, name, _tags(surveyed), again=known) as parent:
        launched, status = _launch(request, surveyed, todo, parent)
        planned = surveyed.plan()
        log_grid(surveyed.store, parent.run_id, planned, comparisons(surveyed.grid, planned))
    return _outcome(request, surveyed, planned, parent.run_id, status, launched)


def _launch(
    request: AblationRequest, surveyed: Survey, todo: Sequence[PlannedCell], parent: ParentRun
) -> tuple[int, Status]:
    """Runs the cells; answers with how many were begun, and the launch's status."""
    if not todo:
        return 0, "finished"
    config = request.file.config
    check_room_here(request.address, config.workers * (request.concurrency or 1), request.cpus_per_worker)
    storage = request.storage / "ablation"
    for problem in replay_leftovers(storage, surveyed.store, DRAIN_SECONDS):
        say(f"still waiting to be tracked: {problem}")
    with ray_session(request.address) as hosts:
        # What leads cells through Ray Tune takes seconds to load, which a launch with nothing to do is not to wait for.
        from pipeline.ablation.director import GridDirector, Site, Task
        from pipeline.trials.clerk import Clerk
        from pipeline.trials.runner import run_trials
        from pipeline.trials.trial import run_trial

        pool = make_pool(
            hosts, len(todo), config.workers, request.concurrency, request.cpus_per_worker, request.gpus_per_worker
        )
        budget = request.budget_hours if request.budget_hours is not None else config.budget_hours
        _check_budget(budget, todo, pool)
        opening = Opening(request.file.name, parent.run_id, pool.placement, anew=request.mode != "missing")
        site = Site(surveyed.store, opening, request.data_root, storage, Clerk())
        tasks = [
            Task(one.cell, one.calibration if one.state == "new" else None)
            for one in _once_each(todo)
            if isinstance(one.cell, GridCell)
        ]
        director = GridDirector(tasks, site, None if budget is None else time.monotonic() + 3600 * budget)
        run_trials(director, pool, storage / f"tune-{parent.run_id}", run_trial)
        site.clerk.finish()
    if director.failed:
        parent.status, parent.reason = "FAILED", "a run failed"
        return len(tasks) - director.left, "failed"
    if director.left:
        say(f"the budget is used up: {director.left} cells were not begun; the same command goes on with them")
        parent.status, parent.reason = "KILLED", "budget"
        return len(tasks) - director.left, "stopped"
    return len(tasks), "finished"


def _once_each(todo: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Two variants may be one config on some benchmark; it is run once, under the first one's name."""
    found = {one.cell.tune.config_hash: one for one in reversed(todo) if isinstance(one.cell, GridCell)}
    return [one for one in todo if one in found.values()]


def _check_budget(hours: float | None, todo: Sequence[PlannedCell], pool: Pool) -> None:
    cost = total_cost(todo)
    if hours is None or cost is None:
        return
    predicted = cost.seconds / pool.concurrency
    if predicted > 3600 * hours:
        raise ResourceError(
            f"{len(todo)} cells would take about {duration(predicted)}, more than the budget of {duration(3600 * hours)}",
            "raise --budget-hours, or run fewer variants, benchmarks or seeds",
        )


def _outcome(
    request: AblationRequest,
    surveyed: Survey,
    planned: Sequence[PlannedCell],
    parent_run_id: str,
    status: Status,
    launched: int,
) -> AblationOutcome:
    return AblationOutcome(
        status=status,
        launched=launched,
        cells=tuple(planned),
        comparison=comparisons(surveyed.grid, planned)[0],
        parent_run_id=parent_run_id,
        tracking_uri=request.tracking_uri,
    )


def parent_key(surveyed: Survey) -> str:
    """Changes with every cell of the grid: a grid that was changed gets a parent of its own."""
    parts = [
        f"{one.benchmark} {one.variant} {one.seed} {one.tune.config_hash if isinstance(one, GridCell) else 'missing'}"
        for one in surveyed.cells
    ]
    return hashlib.sha256("\n".join([surveyed.grid.file.name, *parts]).encode()).hexdigest()[:16]


def _is_standin(surveyed: Survey) -> bool:
    return any(isinstance(one, GridCell) and one.tune.data.standin for one in surveyed.cells)


def _tags(surveyed: Survey) -> dict[str, str]:
    return {
        "mgmrn.kind": PARENT_KIND,
        "mgmrn.study": surveyed.grid.file.name,
        "mgmrn.benchmark": ",".join(dict.fromkeys(one.benchmark for one in surveyed.cells)),
        "mgmrn.standin": str(_is_standin(surveyed)).lower(),
    }
