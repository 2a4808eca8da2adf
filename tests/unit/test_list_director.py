"""A list of runs without Ray, store or training behind it: what is run in which order, and what becomes of each run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.ablation.cells import GridCell
from pipeline.driver import driver_tag
from pipeline.tracking.store import DRIVER_TAG, TrackedRun
from pipeline.train.cell import Cell
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import Calibration
from pipeline.train.tracked import Opening
from pipeline.trials import list_director as director_module
from pipeline.trials.list_director import ListDirector, Task
from pipeline.trials.plan import Pool, TrialPlan, TrialReport
from pipeline.trials.site import Clerk, Site
from tests.grids import DECIDED, SMOOTH, cells_of, write_data, write_grid

LATE = Failure("out-of-memory", "the device is full", hint="take a smaller batch")
PLACEMENT = Placement(workers=1, cpus_per_worker=2, gpus_per_worker=0)


@dataclass
class Lab:
    """A grid's parts, and what became of each tracked run."""

    events: list[tuple[str, str]] = field(default_factory=list)
    """`variant split` → opened, finished, failed, killed, closed."""
    openings: list[Opening] = field(default_factory=list)
    clerk: Clerk = field(default_factory=Clerk)
    stored: list[TrackedRun] = field(default_factory=list)
    """Runs that the tracking store has already."""

    said: list[str] = field(default_factory=list)

    def director(self, tasks: Sequence[Task], deadline: float | None = None) -> ListDirector:
        opening = Opening("grid", "parent", PLACEMENT)
        store = SimpleNamespace(
            experiment_id="1", own_runs=lambda wanted: self.stored, runs_of=lambda patterns, wanted: []
        )
        site = Site(cast(Any, store), opening, Path("/data"), Path("/runs"), Pool(2, PLACEMENT), self.clerk)
        return ListDirector(tasks, site, self.said.append, lambda cell: lambda step, metrics: None, deadline)

    def of(self, run: str) -> list[str]:
        """What became of a run, once all errands are done."""
        self.clerk.finish()
        return [event for event, name in self.events if name == run]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The tracking store is a list of events."""
    lab = Lab()

    def open_run(store: Any, cell: Any, spec: Any, opening: Opening, on_epoch: Any) -> Any:
        name = f"{cell.variant} {cell.split}"
        lab.events.append(("opened", name))
        lab.openings.append(opening)
        return SimpleNamespace(
            cell=cell,
            run_id=f"id of {cell.variant} {cell.split}",
            finished=lambda ended: lab.events.append((f"finished {ended.checkpoint}", name)),
            failed=lambda failure: lab.events.append((f"failed {failure.reason}", name)),
            killed=lambda reason: lab.events.append((f"killed {reason}", name)),
            close=lambda: lab.events.append(("closed", name)),
        )

    def from_checkpoint(folder: Path, metrics: dict[str, float]) -> Any:
        decided = Calibration(epochs=int(metrics["epoch"]), gamma=0.25)
        return SimpleNamespace(checkpoint=folder.name, calibration=decided, reported={"val/ausuc": 0.5})

    monkeypatch.setattr(director_module, "open_run", open_run)
    monkeypatch.setattr(director_module, "Fitted", SimpleNamespace(from_checkpoint=from_checkpoint))
    yield lab
    lab.clerk._pool.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid")
    write_data(path / "data")
    return path


def cells(folder: Path, text: str = SMOOTH) -> list[GridCell]:
    """base and smooth with one seed."""
    return cells_of(write_grid(folder, text), folder / "data")


def task(cell: GridCell, calibration: Calibration | None = None, anew: bool = False) -> Task:
    return Task(cell.tune, None if cell.final_data is None else cell.final, calibration, anew)


@pytest.fixture
def tasks(folder: Path) -> list[Task]:
    return [task(cell) for cell in cells(folder)]


@pytest.fixture
def tune_tasks(folder: Path) -> list[Task]:
    """Of a grid that is scored on validation images."""
    return [task(cell) for cell in cells(folder, "split: tune\n" + SMOOTH)]


def epoch(steps: int) -> TrialReport:
    return TrialReport(run=0, steps=steps, metrics={"epoch": steps, "val/ausuc": 0.5})


def end(steps: int = 2) -> TrialReport:
    return epoch(steps).model_copy(update={"checkpoint": f"/runs/checkpoint_{steps}"})


def failed() -> TrialReport:
    failure = {"reason": LATE.reason, "message": LATE.message, "where": LATE.where, "hint": LATE.hint}
    return TrialReport(run=0, steps=1, failure=failure)


def begun(director: GridDirector) -> TrialPlan:
    """The next trial, which must be one."""
    plan = director.next_trial()
    assert isinstance(plan, TrialPlan)
    return plan


def run_to_end(director: GridDirector, plan: TrialPlan) -> None:
    for steps in (1, 2):
        assert not director.reported(plan.number, epoch(steps))
    assert not director.reported(plan.number, end())
    director.ended(plan.number, None)


def what(plan: TrialPlan) -> tuple[str, float, Calibration | None]:
    """Split, label smoothing and calibration of a trial's only run."""
    (spec,) = plan.runs
    return spec.split, spec.config.loss.label_smoothing, spec.calibration


def stored(cell: Cell, status: str, driver: str = "") -> TrackedRun:
    """A run of a cell in the store."""
    tags = {
        "mgmrn.kind": "run",
        "mgmrn.config_hash": cell.config_hash,
        "mgmrn.split": cell.split,
        "mgmrn.calibration": DECIDED.model_dump_json() if status == "FINISHED" else "none",
        DRIVER_TAG: driver,
    }
    return TrackedRun("0" * 32, cell.name, status, tags, {}, "1")


def test_a_cell_that_another_driver_runs_is_waited_for_and_its_result_is_taken(
    lab: Lab, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(director_module, "LOOK_SECONDS", 0.0)
    tune = tasks[0].tune
    lab.stored = [stored(tune, "RUNNING", driver_tag())]
    director = lab.director(tasks[:1])
    assert director.next_trial() == "later"
    assert lab.events == []
    lab.stored = [stored(tune, "FINISHED")]
    assert what(begun(director)) == ("final", 0, DECIDED)
    assert director.next_trial() is None


def test_what_is_finished_is_answered_before_anything_starts(lab: Lab, tune_tasks: list[Task]) -> None:
    lab.stored = [replace(stored(tune_tasks[0].tune, "FINISHED"), metrics={"val/ausuc": 0.25})]
    director = lab.director(tune_tasks)
    assert director.take_known() and director.left == 1
    run_to_end(director, begun(director))
    assert director.next_trial() is None and not director.take_known()
    figures = [director.results[task.tune.identity].metrics["val/ausuc"] for task in tune_tasks]
    assert figures == [0.25, 0.5]


def test_a_cell_that_another_driver_left_is_begun_here(
    lab: Lab, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(director_module, "LOOK_SECONDS", 0.0)
    lab.stored = [stored(tasks[0].tune, "RUNNING", driver_tag())]
    director = lab.director(tasks[:1])
    assert director.next_trial() == "later"
    lab.stored = [stored(tasks[0].tune, "RUNNING", f"{socket.gethostname()}:999999999:0.0")]
    assert what(begun(director)) == ("tune", 0, None)


def test_a_cell_is_tuned_and_then_run_with_what_that_decided(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks[:1])
    tune = begun(director)
    assert what(tune) == ("tune", 0, None)
    director.reported(tune.number, end(steps=1))
    final = begun(director)
    assert what(final) == ("final", 0, Calibration(epochs=1, gamma=0.25))
    run_to_end(director, final)
    assert director.next_trial() is None
    assert lab.of("base tune") == ["opened", "finished checkpoint_1", "closed"]
    assert lab.of("base final") == ["opened", "finished checkpoint_2", "closed"]
    assert director.left == 0
    assert [one.run_id for one in director.results.values()] == ["id of base tune", "id of base final"]


def test_cells_are_begun_in_order_and_final_runs_come_before_new_cells(lab: Lab, folder: Path) -> None:
    seeds = cells(folder, "seeds: [0, 1]\n" + SMOOTH)
    director = lab.director([task(cell) for cell in seeds])
    first, second = begun(director), begun(director)
    assert [plan.runs[0].config.seed for plan in (first, second)] == [0, 1]
    run_to_end(director, second)
    run_to_end(director, first)
    following = [begun(director) for _ in range(4)]
    assert [what(plan)[:2] for plan in following] == [("final", 0), ("final", 0), ("tune", 0.1), ("tune", 0.1)]
    assert [plan.runs[0].config.seed for plan in following] == [1, 0, 0, 1]


def test_numbers_folders_and_placement_are_those_of_the_launch(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director([replace(tasks[0], anew=True), tasks[1]])
    plans = [begun(director), begun(director)]
    for plan in list(plans):
        run_to_end(director, plan)
    plans += [begun(director), begun(director)]
    assert [plan.number for plan in plans] == [0, 1, 2, 3]
    specs = [plan.runs[0] for plan in plans]
    assert len({spec.run_folder for spec in specs}) == 4
    assert {spec.run_folder.parent for spec in specs} == {Path("/runs")}
    assert {(spec.data_root, spec.cpus_per_worker) for spec in specs} == {(Path("/data"), 2)}
    assert all(plan.placement == PLACEMENT for plan in plans)
    assert {one.parent_run_id for one in lab.openings} == {"parent"}
    assert [one.restart for one in lab.openings] == [True, False, True, False], "of a cell's both runs, or of neither"


def test_what_is_tuned_already_is_run_on_the_final_split_alone(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director([replace(tasks[0], calibration=DECIDED)])
    plan = begun(director)
    assert what(plan) == ("final", 0, DECIDED)
    assert director.next_trial() is None, "nothing follows a final run"
    run_to_end(director, plan)
    assert lab.of("base tune") == []


def test_there_is_more_later_while_a_tune_run_is_on_whose_final_run_follows(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks)
    plans = [begun(director), begun(director)]
    assert director.next_trial() == "later"
    run_to_end(director, plans[0])
    begun(director)
    assert director.next_trial() == "later", "the other one is still tuned"
    run_to_end(director, plans[1])
    begun(director)
    assert director.next_trial() is None, "two final runs are on"


def test_on_the_tune_split_nothing_follows(lab: Lab, tune_tasks: list[Task]) -> None:
    director = lab.director(tune_tasks)
    plans = [begun(director), begun(director)]
    assert director.next_trial() is None
    for plan in plans:
        run_to_end(director, plan)
    assert director.next_trial() is None
    assert lab.of("smooth tune") == ["opened", "finished checkpoint_2", "closed"]


def test_nothing_is_begun_after_the_deadline_and_what_was_begun_is_brought_to_its_end(
    lab: Lab, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    director = lab.director(tasks, deadline=now + 60)
    tune = begun(director)
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert director.next_trial() == "later"
    run_to_end(director, tune)
    final = begun(director)
    assert what(final)[0] == "final"
    assert director.next_trial() is None
    run_to_end(director, final)
    assert director.next_trial() is None
    assert director.left == 1
    assert lab.of("smooth tune") == []


def test_a_budget_that_is_used_up_from_the_start_begins_nothing(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director([tasks[0], replace(tasks[1], calibration=DECIDED)], deadline=time.monotonic())
    assert director.next_trial() is None
    assert director.left == 2


def test_after_a_failed_tune_run_there_is_no_final_run(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks[:1])
    plan = begun(director)
    director.reported(plan.number, epoch(1))
    assert not director.reported(plan.number, failed())
    assert director.next_trial() is None
    director.ended(plan.number, None)
    assert lab.of("base tune") == ["opened", "failed out-of-memory", "closed"]
    assert director.left == 0 and director.results[tasks[0].tune.identity].metrics == {}
    name = tasks[0].tune.name
    assert lab.said == [f"error: {name} tune: the device is full (take a smaller batch)"]


def test_a_cell_that_fails_stops_no_other(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks)
    first, second = begun(director), begun(director)
    director.reported(first.number, failed())
    assert director.next_trial() == "later"
    run_to_end(director, second)
    assert what(begun(director))[:2] == ("final", 0.1)


@pytest.mark.parametrize(("error", "message"), [("its host died", "its host died"), (None, "without a result")])
def test_a_run_that_is_lost_has_failed(lab: Lab, tasks: list[Task], error: str | None, message: str) -> None:
    director = lab.director(tasks[:1])
    plan = begun(director)
    director.reported(plan.number, epoch(1))
    director.ended(plan.number, error)
    assert director.next_trial() is None
    assert lab.of("base tune") == ["opened", "failed workers-lost", "closed"]
    (said,) = lab.said
    assert message in said


def test_a_lost_final_run_has_failed_too(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks[:1])
    run_to_end(director, begun(director))
    director.ended(begun(director).number, "its host died")
    assert lab.of("base tune") == ["opened", "finished checkpoint_2", "closed"]
    assert lab.of("base final") == ["opened", "failed workers-lost", "closed"]
    assert director.next_trial() is None


@pytest.mark.parametrize("last", [end(), failed()])
def test_a_process_that_is_lost_after_its_last_word_says_it_once_more_in_vain(
    lab: Lab, tasks: list[Task], last: TrialReport
) -> None:
    director = lab.director(tasks[:1])
    plan = begun(director)
    director.reported(plan.number, last)
    events = lab.of("base tune")
    for report in (epoch(1), last):
        assert not director.reported(plan.number, report)
    director.ended(plan.number, "its host died")
    assert lab.of("base tune") == events
    finals = [director.next_trial(), director.next_trial()]
    assert [isinstance(one, TrialPlan) for one in finals] == [last.failure is None, False], "one final run at most"


def test_an_interrupted_launch_ends_its_open_runs_and_no_others(lab: Lab, tasks: list[Task]) -> None:
    director = lab.director(tasks)
    first = begun(director)
    begun(director)
    run_to_end(director, first)
    begun(director)
    director.interrupted("interrupted")
    assert lab.of("base tune") == ["opened", "finished checkpoint_2", "closed"]
    assert lab.of("base final") == ["opened", "killed interrupted", "closed"]
    assert lab.of("smooth tune") == ["opened", "killed interrupted", "closed"]
    assert lab.said == []
