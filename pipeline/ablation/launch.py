"""`ablate`, from the request to the outcome: missing runs of a grid are trained, finished ones are reused, below one parent run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mgmrn.data.splits import check_images_exist, evaluation_images
from mgmrn.errors import ResourceError
from pipeline.ablation.config import AblationFile
from pipeline.ablation.grid import GridCell
from pipeline.ablation.plan import TO_RUN, PlannedCell, survey
from pipeline.ablation.results import comparisons, log_grid
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import CellState
from pipeline.console import duration, say
from pipeline.driver import heartbeat
from pipeline.redaction import redact_address
from pipeline.tracking.store import TrackingStore
from pipeline.train.cluster import check_room_here, ray_session
from pipeline.train.placement import Host, Placement
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
from pipeline.trials.site import Site, place_trials
from pipeline.where import Where

Mode = Literal["missing", "retry", "force"]
Status = Literal["finished", "cached", "failed", "stopped"]

RUN_BY: Mapping[Mode, frozenset[CellState]] = {
    "missing": frozenset({"new"}),
    "retry": TO_RUN,
    "force": TO_RUN | {"cached"},
}
"""States of the cells that each mode runs."""


@dataclass(frozen=True)
class AblationRequest:
    """One launch of a grid, and where it runs."""

    file: AblationFile
    where: Where
    mode: Mode = "missing"
    concurrency: int | None = None
    """Number of runs at once; None runs as many as the cluster has room for."""
    budget_hours: float | None = None
    """Hours of the launch; None uses the value in the file, if any."""


@dataclass(frozen=True)
class AblationOutcome:
    """Result of a launch."""

    status: Status
    """stopped: the budget ended before all cells had begun."""
    launched: int
    """Number of cells that began."""
    cells: tuple[PlannedCell, ...]
    """All cells of the grid, after the launch."""
    comparison: Comparison
    """Comparison by the primary figure."""
    parent_run_id: str
    tracking_uri: str


def run_ablation(request: AblationRequest) -> AblationOutcome:
    """Launch the cells that the mode asks for.

    Raises:
        UserError: for a bad grid or data set; nothing was started.
        ResourceError: when no run can ever be placed, the predicted time is over the budget, or the storage is full or read-only.
        TrackingError: when the tracking store cannot be reached.
        UntrackedError: when the store went away while runs were trained.
    """
    where = request.where.absolute()
    where = replace(where, storage=where.storage / "ablation")
    hours = request.budget_hours if request.budget_hours is not None else request.file.config.budget_hours
    request = replace(request, where=where, budget_hours=hours)
    surveyed = survey(request.file, where)
    grid, store, name = surveyed.grid, surveyed.store, request.file.name
    if left := send_leftovers(where.storage, store, END_SECONDS):
        say(str(left))
    planned = surveyed.plan()
    todo = _once_each([one for one in planned if one.state in RUN_BY[request.mode] or one.state == "running"])
    known = store.find_finished(surveyed.key, PARENT_SPLIT)
    uri = redact_address(where.tracking_uri)
    if not todo and known is not None:
        (primary,) = comparisons(grid, planned, request.file.config.primary)
        return AblationOutcome("cached", 0, tuple(planned), primary, known.run_id, uri)
    _check_images(todo)
    if todo:
        check_writable(where.storage)
        workers = request.file.config.workers * (request.concurrency or 1)
        check_room_here(where.address, workers, where.cpus_per_worker)
    tags = {
        "mgmrn.kind": "ablation",
        "mgmrn.study": name,
        "mgmrn.benchmark": ",".join(dict.fromkeys(one.benchmark for one in surveyed.cells)),
    }
    with explained(where.storage), heartbeat(where.storage), ExitStack() as stack:
        room = _room(request, todo, stack.enter_context(ray_session(where.address))) if todo else None
        parent = stack.enter_context(
            parent_run(store, where.storage, surveyed.key, f"ablation {name}", tags, again=known)
        )
        launched, status = _launch(request, store, todo, room, parent) if room else (0, "finished")
        # The outcome is read from the store, which must hold all of it first.
        if left := send_leftovers(where.storage, store, PATIENCE_SECONDS):
            raise left
        planned = patiently(surveyed.plan, PATIENCE_SECONDS)
        if any(one.state == "failed" for one in planned):
            parent.status, parent.reason, status = "FAILED", "a run failed", "failed"
        compared = comparisons(grid, planned)
        patiently(partial(log_grid, store, parent.run_id, planned, compared), PATIENCE_SECONDS)
    return AblationOutcome(status, launched, tuple(planned), compared[0], parent.run_id, uri)


def _check_images(todo: Sequence[PlannedCell]) -> None:
    """Check that the images exist which the cells will read, once per benchmark."""
    for cell in {one.cell.benchmark: one.cell for one in todo if isinstance(one.cell, GridCell)}.values():
        for split in (cell.tune.data, cell.final_data):
            if split is not None:
                check_images_exist(split.train.followed_by(evaluation_images(split)))


def _once_each(todo: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Cells without those of a later variant that is the same config on a benchmark."""
    found = {one.cell.tune.config_hash: one for one in reversed(todo) if isinstance(one.cell, GridCell)}
    return [one for one in todo if one in found.values()]


def _room(request: AblationRequest, todo: Sequence[PlannedCell], hosts: tuple[Host, ...]) -> tuple[int, Placement]:
    """Number of runs at once and the placement of each, once the predicted time is within the budget.

    Cells of unknown cost are left out of the prediction.
    """
    workers = request.file.config.workers
    concurrency, placement = place_trials(hosts, request.where, len(todo), workers, request.concurrency)
    costs = [one.cost.seconds for one in todo if one.cost is not None]
    predicted, hours = sum(costs) / concurrency, request.budget_hours
    if hours is not None and predicted > 3600 * hours:
        raise ResourceError(
            f"{len(costs)} of {len(todo)} cells would take about {duration(predicted)}, "
            f"more than the budget of {duration(3600 * hours)}",
            "raise --budget-hours, or run fewer variants, benchmarks or seeds",
        )
    return concurrency, placement


def _launch(
    request: AblationRequest,
    store: TrackingStore,
    todo: Sequence[PlannedCell],
    room: tuple[int, Placement],
    parent: ParentRun,
) -> tuple[int, Status]:
    """Run the cells; returns how many began, and the status of the launch."""
    # Ray Tune takes seconds to load, which a launch with nothing to do does not wait for.
    from pipeline.trials.list_director import ListDirector, Task
    from pipeline.trials.runner import run_trials
    from pipeline.trials.trial import OpenTrial

    concurrency, placement = room
    opening = Opening(request.file.name, parent.run_id, placement)
    site = Site(store, opening, request.where.data_root, request.where.storage, concurrency)
    tasks = []
    for one in todo:
        if isinstance(one.cell, GridCell):
            restart = request.mode == "force" or one.state == "stale"
            final = None if one.cell.final_data is None else one.cell.final
            tasks.append(Task(one.cell.tune, final, None if restart else one.calibration, restart))
    deadline = None if request.budget_hours is None else time.monotonic() + 3600 * request.budget_hours
    director = ListDirector(tasks, site, say, lambda run: epoch_lines(f"{run.name} {run.split}"), deadline)
    run_trials(director, placement, concurrency, site.tune_folder, OpenTrial)
    site.clerk.finish()
    if not director.waiting:
        return len(tasks), "finished"
    say(f"the budget is used up: {len(director.waiting)} cells were not begun; the same command goes on with them")
    parent.status, parent.reason = "KILLED", "budget"
    return len(tasks) - len(director.waiting), "stopped"
