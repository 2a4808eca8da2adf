"""`ablate`, from the request to the outcome: missing runs of a grid are trained, finished ones are reused, below one parent run."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Literal

from mgmrn.errors import ResourceError
from pipeline.ablation.config import AblationFile
from pipeline.ablation.plan import TO_RUN, PlannedCell, survey
from pipeline.ablation.results import comparisons, log_grid
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import CellState
from pipeline.analysis.views import grid_views
from pipeline.console import duration, say
from pipeline.driver import heartbeat
from pipeline.redaction import redact_address
from pipeline.storage import explained
from pipeline.tracking.store import TrackingStore
from pipeline.train import tracked
from pipeline.train.cell import Cell, Status
from pipeline.train.cluster import launch_session
from pipeline.train.placement import Workers, check_gpus, place_trials
from pipeline.train.spec import LoggedModels
from pipeline.trials.known import Cost, KnownRuns
from pipeline.where import Where

Mode = Literal["missing", "retry", "force"]

EXPERIMENT_NOTE = """\
{question}

`python -m pipeline ui {name}` prints the address of a table with one row per variant and benchmark, which holds means over the seeds \
(filter: ``tags.`mgmrn.kind` = 'variant'``). The report and `comparison.csv` are artifacts of the launch, below which its runs are folded \
under *Sort: Created*.
"""

RUN_BY: Mapping[Mode, frozenset[CellState]] = {
    "missing": frozenset({"new"}),
    "retry": TO_RUN,
    "force": TO_RUN | {"cached"},
}


@dataclass(frozen=True)
class AblationOutcome:
    """Result of a launch."""

    status: Status
    """stopped: the budget ended before all cells had begun."""
    launched: int
    cells: tuple[PlannedCell, ...]
    comparison: Comparison
    """Comparison by the primary figure."""
    parent_run_id: str
    tracking_uri: str


def run_ablation(
    file: AblationFile,
    where: Where,
    *,
    mode: Mode,
    concurrency: int | None,
    budget_hours: float | None,
    log_model: LoggedModels = "final",
) -> AblationOutcome:
    """Launch the cells of a grid that the mode asks for; the defaults are the cluster's room and the file's budget.

    Raises `UserError` for a bad grid or data set, `TrackingError` when the tracking store cannot be reached, and `ResourceError` when no run
    can ever be placed, the predicted time is over the budget, or the storage is read-only: nothing was started. Raises `UntrackedError` when
    the store went away while runs were trained.
    """
    where = where.absolute()
    where = replace(where, storage=where.storage / "ablation")
    check_gpus(where.gpus_per_worker, file.config.workers)
    hours = budget_hours if budget_hours is not None else file.config.budget_hours
    surveyed = survey(file, where, TrackingStore.connect)
    grid, store = surveyed.grid, surveyed.store
    if left := tracked.send_leftovers(where.storage, store, tracked.END_SECONDS):
        say(str(left))
    planned = surveyed.plan()
    found: dict[str, tuple[Cell, PlannedCell]] = {}  # Two variants may be one config on a benchmark, which is run once.
    for one in planned:
        if one.cell.tune and (one.state in RUN_BY[mode] or one.state == "running"):
            found.setdefault(one.cell.tune.config_hash, (one.cell.tune, one))
    todo = list(found.values())
    for tune, _ in todo:
        Workers(file.config.workers, file.config.workers).check_shares(tune.config)
    known = store.find_finished(surveyed.key, tracked.PARENT_SPLIT)
    uri = redact_address(where.tracking_uri)
    if not todo and known is not None:
        (primary,) = comparisons(grid, planned, file.config.primary)
        return AblationOutcome("cached", 0, tuple(planned), primary, known.run_id, uri)
    names = ",".join(dict.fromkeys(one.benchmark for one in surveyed.cells))
    tags = {"mgmrn.kind": "ablation", "mgmrn.study": file.name, "mgmrn.benchmark": names}
    launched = 0
    status: Status = "finished"
    with explained(where.storage), ExitStack() as stack:
        if todo:
            workers = file.config.workers
            # The splits that the cells read, once per benchmark.
            splits = {one.cell.benchmark: one.cell.data for _, one in todo}.values()
            read = list(chain.from_iterable(splits))
            hosts = stack.enter_context(launch_session(where, workers * (concurrency or 1), read))
            at_once, placement = place_trials(hosts, where, len(todo), workers, concurrency)
            _check_budget([cost for _, one in todo if (cost := one.cost)], len(todo), at_once, hours)
        else:
            stack.enter_context(heartbeat(where.storage))
        note = EXPERIMENT_NOTE.format(name=file.name, question=file.question.replace("\n", "\n\n"))
        store.describe(note, grid_views(file.config.scored_split, file.config.primary))
        name = f"ablation {file.name}"
        used = chain.from_iterable(cell.data for cell in surveyed.cells)
        started = tracked.parent_run(store, where.storage, surveyed.key, name, tags, used, again=known)
        parent = stack.enter_context(started)
        if todo:
            opening = tracked.Opening(store, where, file.name, parent, placement, log_model=log_model)
            left_out = _run(todo, mode, opening, at_once, hours)
            launched = len(todo) - left_out
            if left_out:
                say(f"the budget is used up: {left_out} cells were not begun; the same command goes on with them")
                parent.status, parent.reason, status = "KILLED", "budget", "stopped"
        # The outcome is read from the store, which must hold all of it first.
        if left := tracked.send_leftovers(where.storage, store, tracked.PATIENCE_SECONDS):
            raise left
        planned = tracked.patiently(surveyed.plan, tracked.PATIENCE_SECONDS)
        if any(one.state == "failed" for one in planned):
            parent.status, parent.reason, status = "FAILED", "a run failed", "failed"
        compared = comparisons(grid, planned)
        tracked.patiently(partial(log_grid, store, parent.run_id, planned, compared), tracked.PATIENCE_SECONDS)
    return AblationOutcome(status, launched, tuple(planned), compared[0], parent.run_id, uri)


def _check_budget(costs: Sequence[Cost], cells: int, concurrency: int, hours: float | None) -> None:
    predicted = sum(cost.seconds for cost in costs) / concurrency
    if hours is not None and predicted > 3600 * hours:
        excess = f"about {duration(predicted)}, more than the budget of {duration(3600 * hours)}"
        hint = "raise --budget-hours, or run fewer variants, benchmarks or seeds"
        raise ResourceError(f"{len(costs)} of {cells} cells would take {excess}", hint)


def _run(
    todo: Sequence[tuple[Cell, PlannedCell]], mode: Mode, opening: tracked.Opening, at_once: int, hours: float | None
) -> int:
    """Run the cells; returns how many were not begun before the budget ended."""
    # Ray Tune takes seconds to load, which a launch with nothing to do does not wait for.
    from pipeline.ablation.progress import GridProgress
    from pipeline.trials.director import Site
    from pipeline.trials.list_director import ListDirector, Task, run_list

    tasks = []
    for tune, planned in todo:
        restart = mode == "force" or planned.state == "stale"
        final = None if planned.cell.final_data is None else planned.cell.final
        tasks.append(Task(tune, final, None if restart else planned.calibration, restart))
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    known = partial(KnownRuns.of_cell, opening.store)
    runs = sum((task.calibration is None) + (task.final is not None) for task in tasks)
    shown = GridProgress(len(tasks), runs, "final" if tasks[0].final else "tune", sys.stderr)
    director = ListDirector(
        tasks,
        Site(opening, at_once),
        known=known,
        say=shown.say,
        on_epoch=shown.follow,
        on_failure=shown.failed,
        deadline=deadline,
    )
    with shown.shown():
        run_list(director)
    return len(director.waiting)
