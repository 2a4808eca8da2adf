"""Directors of searches and of lists of runs, without Ray, store or training: what runs in which order, and what is recorded."""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest

from pipeline.driver import driver_tag
from pipeline.search import course as course_module
from pipeline.search import director as search_module
from pipeline.search import study as study_module
from pipeline.search.board import Board
from pipeline.search.config import Categorical, FloatRange, Objective, Sampler, Scheduler, SearchConfig, SearchFile
from pipeline.search.course import best_record
from pipeline.search.director import Search, SearchDirector
from pipeline.search.space import Space
from pipeline.search.study import Record, Study
from pipeline.spool import PARENT_TAG
from pipeline.storage import StoragePath
from pipeline.tracking.store import TrackedRun
from pipeline.train.cell import Cell
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import Calibration
from pipeline.train.tracked import Opening
from pipeline.trials import director as director_module
from pipeline.trials import list_director as list_module
from pipeline.trials.director import Clerk, Director, Site
from pipeline.trials.known import KnownRuns
from pipeline.trials.list_director import ListDirector, Task
from pipeline.trials.trial import TrialPlan, TrialReport
from pipeline.where import Where
from tests.grids import DEAD_DRIVER, DECIDED, SMOOTH, a_run, cells_of, figures, write_data, write_grid

RATE = {"optimiser.head_lr": FloatRange(low=1e-4, high=1e-2, log=True)}
TEMPERATURE = {"model.decoder.temperature": Categorical(choices=("none", "sqrt"))}
LENGTH = {"schedule.epochs": Categorical(choices=(4, 8))}
FIXED = {"model.backbone.weights": "none", "model.width": 64, "schedule.epochs": 4}
FULL = Failure("out-of-memory", "the device is full", hint="take a smaller batch")
PLACEMENT = Placement(workers=1, cpus_per_worker=2, gpus_per_worker=0)


@dataclass
class Lab:
    """A study in memory, and a tracking store that is a list of events."""

    events: list[tuple[str, str]] = field(default_factory=list)
    """Opened, resumed, finished, failed, killed, closed → name and split of the run."""
    stored: list[TrackedRun] = field(default_factory=list)
    """Runs that the store holds."""
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Metrics of the parent run."""
    said: list[str] = field(default_factory=list)
    shown: io.StringIO = field(default_factory=io.StringIO)
    clerk: Clerk = field(default_factory=Clerk)

    @property
    def parent(self) -> Any:
        spool = SimpleNamespace(append=lambda step, metrics: self.logged.append((step, metrics)))
        return SimpleNamespace(run_id="parent", spool=spool)

    @property
    def site(self) -> Site:
        store = SimpleNamespace(
            experiment_id="1",
            find_finished=lambda wanted, split: next((one for one in self.stored if wanted in one.tags.values()), None),
        )
        where = Where(data_root=Path("/data"), storage=StoragePath("/runs"))
        return Site(Opening(cast(Any, store), where, "study", self.parent, PLACEMENT), 2, self.clerk)

    def search(self, config: SearchConfig) -> Search:
        space = Space(SearchFile("x", "x.yaml", config, dict.fromkeys([*config.space, *FIXED], "x.yaml")))
        data = {
            name: SimpleNamespace(split="tune", digest=f"of {name}", benchmark=name or "SYN")
            for name in config.benchmarks or (None,)
        }
        board = Board("x", config.trials, "AUSUC", self.shown)
        return Search(config, space, {}, Study("s", "memory", config, space), self.site, cast(Any, data), board)

    def director(self, config: SearchConfig, deadline: float | None = None) -> SearchDirector:
        """Director of a driver that begins the search, or follows another one."""
        search = self.search(config)
        return SearchDirector(search, dict.fromkeys(search.data, 1.0), deadline)

    def records(self, config: SearchConfig) -> list[Record]:
        return self.search(config).study.records()

    def states(self, config: SearchConfig) -> list[str]:
        return [record.state for record in self.records(config)]

    def enqueue(self, config: SearchConfig, *points: Mapping[str, str]) -> Study:
        study = self.search(config).study
        for point in points:
            study.optuna.enqueue_trial(dict(point))
        return study

    def list_director(self, tasks: Sequence[Task], deadline: float | None = None) -> ListDirector:
        settings = {"say": self.said.append, "on_epoch": lambda cell: lambda step, metrics: None, "deadline": deadline}
        return ListDirector(tasks, self.site, known=lambda cell: KnownRuns.among(self.stored, "1"), **settings)

    def of(self, run: str) -> list[str]:
        """Events of the runs with this in their names, once all errands are done."""
        self.clerk.finish()
        return [event for event, name in self.events if run in name]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    lab = Lab()
    memory = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(study_module, "_storage", lambda url: memory)

    def open_run(cell: Cell, opening: Opening, on_epoch: Any) -> Any:
        name = f"{cell.name} {cell.split}"
        lab.events.append(("opened" if opening.restart else "resumed", name))
        return SimpleNamespace(
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
    monkeypatch.setattr(list_module, "LOOK_SECONDS", 0.0)
    yield lab
    lab.clerk.finish()


def epoch(run: int, steps: int, score: float = 0.5, **figures: float) -> TrialReport:
    metrics = {"epoch": steps, "val/ausuc": score, "val/gzsl_h": score / 2, **figures}
    return TrialReport(run=run, steps=steps, metrics=metrics)


def end(run: int, steps: int, score: float = 0.5, **figures: float) -> TrialReport:
    return epoch(run, steps, score, **figures).model_copy(update={"checkpoint": f"/runs/checkpoint_{run}"})


def failed(run: int, steps: int) -> TrialReport:
    return TrialReport(run=run, steps=steps, failure=FULL)


def begun(director: Director) -> TrialPlan:
    plan = director.next_trial()
    assert isinstance(plan, TrialPlan)
    return plan


def run_to_end(director: Director, plan: TrialPlan, score: float = 0.5) -> None:
    """Reports of four epochs of each run."""
    for run in range(len(plan.runs)):
        for steps in range(4 * run + 1, 4 * run + 5):
            assert not director.reported(plan.number, epoch(run, steps, score))
        assert not director.reported(plan.number, end(run, 4 * run + 4, score))
    director.ended(plan.number, None)


def begun_with_lengths(lab: Lab, search: SearchConfig) -> list[Callable[[int, float], bool]]:
    """Trials of 4 and of 8 epochs: functions that report a score of the first run after a number of epochs."""
    lab.enqueue(search, {"schedule.epochs": "4"}, {"schedule.epochs": "8"})
    director = lab.director(search)
    plans = [begun(director), begun(director)]
    assert [plan.runs[0].config.schedule.epochs for plan in plans] == [4, 8]
    return [lambda n, score, plan=plan: director.reported(plan.number, epoch(0, n, score)) for plan in plans]  # type: ignore[misc]


def run_all(director: SearchDirector) -> list[int]:
    """Run one trial after another with a tenth of the number as score; returns the numbers."""
    numbers = []
    while plan := director.next_trial():
        numbers.append(plan.number)
        run_to_end(director, plan, plan.number / 10)
    return numbers


def config(space: Mapping[str, Any] = RATE, **changed: Any) -> SearchConfig:
    quiet = {"sampler": Sampler(name="random"), "scheduler": Scheduler(name="none")}
    fixed = {path: value for path, value in FIXED.items() if path not in space}
    return SearchConfig(base="synthetic", fixed=fixed, space=dict(space), **(quiet | changed))


def test_a_search_runs_the_number_of_trials_that_was_asked_for(lab: Lab) -> None:
    search = config(trials=3)
    assert run_all(lab.director(search)) == [0, 1, 2]
    assert [(one.state, one.values) for one in lab.records(search)] == [("finished", (n / 10,)) for n in range(3)]
    lab.clerk.finish()
    assert [step for step, _ in lab.logged] == [0, 1, 2]
    assert lab.logged[2][1] == {"search/score": 0.2, "search/best": 0.2}


def test_a_plan_holds_a_tune_run_for_every_benchmark_and_seed(lab: Lab) -> None:
    director = lab.director(config(trials=1, benchmarks=("synthetic", "cub100"), seeds=(3, 5)))
    plan = begun(director)
    runs = [(spec.config.benchmark.name, spec.config.seed, spec.split, spec.calibration) for spec in plan.runs]
    assert runs == [(name, seed, "tune", None) for name in ("SYN", "CUB100") for seed in (3, 5)]
    assert len({spec.run_folder for spec in plan.runs}) == 4
    assert director.next_trial() is None, "a running trial counts"


def test_a_proposal_that_repeats_is_neither_run_nor_counted(lab: Lab) -> None:
    search = config(TEMPERATURE, trials=3)
    path = "model.decoder.temperature"
    lab.enqueue(search, {path: "sqrt"}, {path: "none"}, {path: "none"})
    assert run_all(lab.director(search)) == [0, 1]
    records = lab.records(search)
    assert {record.state for record in records[2:]} == {"repeated"}
    assert [record.values for record in records[:3]] == [(0.0,), (0.1,), (0.1,)], "it takes the values of its twin"
    assert len(lab.of("")) == 6, "two runs were opened, finished and closed"
    assert run_all(lab.director(search)) == [], "the next driver finds them"
    assert len(records) == 2 + search_module.LARGEST_STREAK, "a space that is exhausted ends the search"


WIDTHS = TEMPERATURE | {
    "model.width": Categorical(choices=(64, 32)),
    "model.granularity.group_norm_groups": Categorical(choices=(32, 64)),
}
"""Space with points that do not compose: fewer channels than groups."""
GOOD = {"model.width": "64", "model.granularity.group_norm_groups": "32", "model.decoder.temperature": "none"}
BAD = GOOD | {"model.width": "32", "model.granularity.group_norm_groups": "64"}


def test_a_config_that_does_not_compose_fails_and_counts(lab: Lab) -> None:
    search = config(WIDTHS, trials=2)
    lab.enqueue(search, BAD, GOOD)
    assert run_all(lab.director(search)) == [1]
    first = lab.records(search)[0]
    assert first.state == "failed"
    assert first.reason.startswith("bad-input: ") and "must be a multiple of" in first.reason
    assert "trial 0 failed: " in lab.shown.getvalue()


def test_a_driver_that_follows_handles_proposals_that_the_dead_one_did_not(lab: Lab) -> None:
    search = config(WIDTHS, trials=3)
    study = lab.enqueue(search, GOOD, GOOD, BAD)
    for _ in range(3):
        study.propose()
    director = lab.director(search)
    assert begun(director).number == 0
    assert begun(director).number > 2
    assert lab.states(search)[:3] == ["running", "repeated", "failed"]


def test_after_the_deadline_no_new_trial_starts_and_begun_ones_are_finished(lab: Lab) -> None:
    search = config(trials=3)
    plan = begun(lab.director(search, deadline=time.monotonic() + 60))
    late = lab.director(search, deadline=time.monotonic() - 1)
    again = begun(late)
    assert again.number == plan.number
    assert late.next_trial() is None
    run_to_end(late, again)
    assert late.next_trial() is None
    assert lab.states(search) == ["finished"]


def test_trials_that_a_dead_driver_left_are_resumed_first(lab: Lab) -> None:
    search = config(trials=4)
    first = lab.director(search)
    plans = [begun(first) for _ in range(3)]
    run_to_end(first, plans[0])
    first.reported(1, epoch(0, 1, 0.2))
    second = lab.director(search)
    left = [begun(second) for _ in range(3)]
    assert left[:2] == plans[1:] and left[2].number == 3
    run_to_end(second, left[0], 0.8)
    assert lab.records(search)[1].values == (0.8,)
    assert second.next_trial() is None
    assert lab.of(".t001.")[:2] == ["opened", "resumed"] and lab.of(".t003.")[0] == "opened"


def test_runs_that_were_finished_are_not_opened_again(lab: Lab) -> None:
    search = config(trials=1, seeds=(0, 1))
    plan = begun(lab.director(search))
    parts = lab.search(search)
    point = lab.records(search)[0].point
    cell = parts.cell(parts.space.compose(point, None), None, 0, "t000")
    run = a_run(cell)
    lab.stored = [replace(run, tags={**run.tags, PARENT_TAG: "parent"})]
    second = lab.director(search)
    assert begun(second) == plan
    run_to_end(second, plan)
    assert lab.of(".s0.") == ["opened"]
    assert lab.of(".s1.") == ["resumed", "finished checkpoint_1", "closed"]


@pytest.mark.parametrize(
    ("last", "error", "reason"),
    [
        (failed(0, 1), None, "out-of-memory: the device is full"),
        (epoch(0, 1), "its host died", "workers-lost: its host died"),
        (epoch(0, 1), None, "workers-lost: the run ended without a result"),
    ],
)
def test_a_failed_or_lost_trial_ends_as_failed(lab: Lab, last: TrialReport, error: str | None, reason: str) -> None:
    search = config(trials=2)
    director = lab.director(search)
    begun(director)
    assert not director.reported(0, last)
    director.ended(0, error)
    (record,) = lab.records(search)
    assert (record.state, record.reason) == ("failed", reason)
    assert lab.of("") == ["opened", f"failed {reason.partition(':')[0]}", "closed"]
    assert director.next_trial() is not None and director.next_trial() is None, "it counts"


def test_a_trial_that_is_stopped_early_is_killed_and_its_later_reports_are_ignored(lab: Lab) -> None:
    search = config(trials=2, scheduler=Scheduler(name="asha", reduction=2))
    director = lab.director(search)
    begun(director), begun(director)
    assert not director.reported(0, epoch(0, 1, 0.5))
    assert director.reported(1, epoch(0, 1, 0.1))
    assert not director.reported(1, epoch(0, 2, 0.9))
    director.ended(1, None)
    assert lab.states(search) == ["running", "stopped"]
    assert lab.records(search)[1].values == (0.1,)
    assert lab.of(".t001.") == ["opened", "killed stopped early", "closed"]
    assert "trial 1 stopped at" in lab.shown.getvalue()


def test_a_trial_at_its_last_epoch_is_finished_instead_of_stopped(lab: Lab) -> None:
    search = config(trials=2, scheduler=Scheduler(name="asha", grace_percent=25, reduction=4))
    director = lab.director(search)
    begun(director), begun(director)
    for number, scores in enumerate([(0.5, 0.9, 0.9, 0.9), (0.6, 0.8, 0.9, 0.2)]):
        for steps, score in enumerate(scores, start=1):
            assert not director.reported(number, epoch(0, steps, score))
    director.reported(1, end(0, 3, 0.95))
    assert lab.records(search)[1].values == (0.95,)


@pytest.mark.parametrize(("score", "is_stopped"), [(0.5, True), (0.7, False)])
def test_trials_of_different_lengths_are_compared_at_the_same_part_of_their_schedules(
    lab: Lab, score: float, is_stopped: bool
) -> None:
    """A schedule of few epochs scores more after as many: its learning rate has fallen."""
    search = config(LENGTH, trials=2, scheduler=Scheduler(name="asha", grace_percent=50, reduction=2))
    short, long = begun_with_lengths(lab, search)
    assert not short(1, 0.3) and not short(2, 0.6)
    assert not any(long(steps, 0.1 * steps) for steps in (1, 2, 3))
    assert long(4, score) == is_stopped


def test_an_interrupted_search_closes_its_open_runs_and_can_be_resumed(lab: Lab) -> None:
    search = config(trials=2)
    director = lab.director(search)
    plans = [begun(director), begun(director)]
    run_to_end(director, plans[0])
    director.interrupted("interrupted")
    assert lab.of(".t000.") == ["opened", "finished checkpoint_0", "closed"]
    assert lab.of(".t001.") == ["opened", "killed interrupted", "closed"]
    assert lab.states(search) == ["finished", "running"]
    assert lab.director(search).next_trial() == plans[1]


@pytest.mark.parametrize("last", [end(0, 4), failed(0, 1)], ids=["finished", "failed"])
def test_a_trial_ends_in_the_study_only_after_its_run_has_its_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, last: TrialReport
) -> None:
    """A driver that is killed in between would never end the run, since it resumes no trial that has ended."""

    def die(why: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(director_module, "open_run", lambda *_: SimpleNamespace(finished=die, failed=die, close=str))
    director = lab.director(config(trials=1))
    begun(director)
    with pytest.raises(OSError, match="killed"):
        director.reported(0, last)
    assert lab.states(config(trials=1)) == ["running"]
    lab.clerk = Clerk()


def test_the_epoch_that_counts_decides_instead_of_the_last_beside_a_cost(lab: Lab) -> None:
    """With a cost as the second value, the mean over the runs."""
    search = config(trials=1, seeds=(0, 1), objective=Objective(metric="h", cost="parameters"))
    director = lab.director(search)
    begun(director)
    for run, scores, best in ((0, (0.2, 0.8, 0.4, 0.4), 0.8), (1, (0.2, 0.4, 0.6, 0.2), 0.6)):
        for steps, score in enumerate(scores, start=4 * run + 1):
            assert not director.reported(0, epoch(run, steps, score))
        figures = {"perf/parameters": 1000.0 * (run + 1), "perf/step_ms": 5.0}
        director.reported(0, end(run, 4 * run + 4, best, **figures))
    (record,) = lab.records(search)
    assert record.values == (pytest.approx((0.4 + 0.3) / 2), 1500.0)
    assert (record.scores[25], record.scores[62], record.scores[100]) == ((0.4,), (0.4, 0.1), (0.4, 0.3))


def test_scores_of_several_benchmarks_are_divided_by_those_of_the_base(lab: Lab) -> None:
    search = config(trials=1, benchmarks=("synthetic", "cub100"))
    director = SearchDirector(lab.search(search), {"synthetic": 0.5, "cub100": 0.25}, None)
    begun(director)
    for one in (*(epoch(0, steps, 0.6) for steps in (1, 2, 3, 4)), end(0, 4, 0.6), epoch(1, 5, 0.2)):
        director.reported(0, one)
    intermediate = lab.search(search).study.optuna.trials[0].intermediate_values
    assert (intermediate[50], intermediate[62]) == (pytest.approx(1.2), pytest.approx((1.2 + 0.8) / 2))
    director.reported(0, end(1, 8, 0.3))
    assert lab.records(search)[0].values == (pytest.approx(1.2),)


def test_ranks_compare_a_trial_with_the_others_at_the_same_part_of_their_schedules(lab: Lab) -> None:
    search = config(trials=3, benchmarks=("synthetic", "cub100"), objective=Objective(combine="mean_rank"))
    director = lab.director(search)
    plans = [begun(director) for _ in range(3)]
    for plan, score in zip(plans, (0.5, 0.7, 0.9), strict=True):
        run_to_end(director, plan, score)
    records = lab.records(search)
    assert [record.values for record in records] == [(0.5,), (1.0,), (1.0,)]
    best = best_record(search, records)
    assert best is not None and best.number == 2, "ranks among all finished trials name the best"

    search = config(LENGTH, trials=2, objective=Objective(combine="mean_rank"), benchmarks=("synthetic", "cub100"))
    lab.search(search).study.delete()
    short, long = begun_with_lengths(lab, search)
    for steps, score in enumerate((0.1, 0.2, 0.3, 0.4), start=1):
        short(steps, score)
    for steps, score in enumerate((0.05, 0.05, 0.15, 0.15, 0.25), start=1):
        long(steps, score)
    intermediate = lab.search(search).study.optuna.trials[1].intermediate_values
    assert intermediate == {6: 0.5, 12: 0.0, 18: 1.0, 25: 0.0, 31: 1.0}, "of 8 and 16 epochs over two runs"


@pytest.mark.parametrize(
    ("smoothing", "verdict"), [(0.25, "better"), (0.0, "the base is the best")], ids=["another config", "the base"]
)
def test_the_best_trial_is_compared_with_the_base_unless_it_is_the_base(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, smoothing: float, verdict: str
) -> None:
    rows = FloatRange(low=0, high=0.5)
    search = lab.search(config({"loss.label_smoothing": rows, "loss.level_weights.c2": FloatRange(low=0.5, high=2)}))
    search = replace(search, bases={None: search.space.compose({}, None)})

    def scores(_: Search, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
        return {cell.identity: {"val/ausuc": 0.5 + cell.config.loss.label_smoothing} for cell in cells}

    monkeypatch.setattr(course_module, "_run_cells", scores)
    best = Record(0, "finished", {"loss.label_smoothing": smoothing, "loss.level_weights.c2": 1.0}, (0.5,), {}, "")
    (found,) = course_module.compare_with_base(search, best)
    assert (found.verdict, found.is_base) == (verdict, smoothing == 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid")
    write_data(path / "data")
    return path


def tasks_of(folder: Path, text: str = SMOOTH) -> list[Task]:
    cells = cells_of(write_grid(folder, text), folder / "data")
    return [Task(cell.tune, None if cell.final_data is None else cell.final) for cell in cells]


@pytest.fixture
def tasks(folder: Path) -> list[Task]:
    return tasks_of(folder)


def what(plan: TrialPlan) -> tuple[str, float, Calibration | None]:
    """Split, label smoothing and calibration of a trial's only run."""
    (spec,) = plan.runs
    return spec.split, spec.config.loss.label_smoothing, spec.calibration


@pytest.mark.parametrize(
    ("status", "driver", "next_run"),
    [("FINISHED", "", ("final", 0, DECIDED)), ("RUNNING", DEAD_DRIVER, ("tune", 0, None))],
)
def test_a_run_elsewhere_is_waited_for(lab: Lab, tasks: list[Task], status: str, driver: str, next_run: object) -> None:
    lab.stored = [a_run(tasks[0].first, "RUNNING", driver=driver_tag())]
    director = lab.list_director(tasks[:1])
    assert director.next_trial() == "later"
    assert lab.events == [] and "waiting for its result" in lab.said[0]
    lab.stored = [a_run(tasks[0].first, status, driver=driver)]
    assert what(begun(director)) == next_run


def test_finished_runs_are_answered_before_anything_starts(lab: Lab, folder: Path) -> None:
    tasks = tasks_of(folder, "split: tune\n" + SMOOTH)
    lab.stored = [a_run(tasks[0].first, score=0.25)]
    director = lab.list_director(tasks)
    assert director.take_known() and len(director.waiting) == 1
    run_to_end(director, begun(director))
    assert director.next_trial() is None and not director.take_known()
    found = [director.summaries[task.first.identity].metrics["val/ausuc"] for task in tasks]
    assert found == [figures(tasks[0].first, 0.25)["val/ausuc"], 0.5]


def test_a_cell_is_tuned_and_then_run_with_its_calibration(lab: Lab, tasks: list[Task]) -> None:
    director = lab.list_director(tasks[:1])
    tune = begun(director)
    assert what(tune) == ("tune", 0, None)
    director.reported(tune.number, end(0, 1))
    final = begun(director)
    assert what(final) == ("final", 0, Calibration(epochs=1, gamma=0.25))
    run_to_end(director, final)
    assert director.next_trial() is None and len(director.waiting) == 0
    for split in (" tune", " final"):
        assert lab.of(split) == ["resumed", "finished checkpoint_0", "closed"]
    assert len(director.summaries) == 2


def test_restarted_and_resumed_tasks_share_the_place_of_the_launch(lab: Lab, tasks: list[Task]) -> None:
    director = lab.list_director([replace(tasks[0], restart=True), tasks[1]])
    plans = [begun(director), begun(director)]
    for plan in plans:
        run_to_end(director, plan)
    specs = [plan.runs[0] for plan in plans]
    assert len({spec.run_folder for spec in specs}) == 2
    places = {(spec.run_folder.parent, spec.data_root, spec.cpus_per_worker) for spec in specs}
    assert places == {(StoragePath("/runs"), Path("/data"), 2)} and {plan.placement for plan in plans} == {PLACEMENT}
    assert lab.of("base")[0] == "opened" and lab.of("smooth")[0] == "resumed"


def test_begun_tasks_are_ended_after_the_deadline(lab: Lab, tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    director = lab.list_director(tasks, deadline=now + 60)
    tune = begun(director)
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert director.next_trial() == "later"
    run_to_end(director, tune)
    assert what(begun(director))[0] == "final"
    assert director.next_trial() is None and len(director.waiting) == 1
    assert lab.of("smooth") == []


def test_a_failed_run_has_no_final_run_and_stops_no_other(lab: Lab, tasks: list[Task]) -> None:
    director = lab.list_director(tasks)
    first, second = begun(director), begun(director)
    director.reported(first.number, epoch(0, 1))
    assert not director.reported(first.number, failed(0, 1))
    director.ended(first.number, None)
    assert director.next_trial() == "later"
    run_to_end(director, second)
    assert what(begun(director))[:2] == ("final", 0.1)
    assert lab.of("base") == ["resumed", "failed out-of-memory", "closed"]
    assert director.summaries[tasks[0].first.identity].status == "failed"
    assert lab.said == [f"error: {tasks[0].first.name} tune: the device is full (take a smaller batch)"]


def test_a_task_that_has_a_calibration_is_its_final_run_which_fails_when_lost(lab: Lab, tasks: list[Task]) -> None:
    director = lab.list_director([replace(tasks[0], calibration=DECIDED)])
    plan = begun(director)
    assert what(plan) == ("final", 0, DECIDED)
    director.ended(plan.number, "its host died")
    assert director.next_trial() is None
    assert lab.of("") == ["resumed", "failed workers-lost", "closed"]
    assert "its host died" in lab.said[0]


@pytest.mark.parametrize("last", [end(0, 2), failed(0, 2)])
def test_reports_again_after_the_last_one_change_nothing(lab: Lab, tasks: list[Task], last: TrialReport) -> None:
    director = lab.list_director(tasks[:1])
    plan = begun(director)
    director.reported(plan.number, last)
    events = lab.of("tune")
    for report in (epoch(0, 1), last):
        assert not director.reported(plan.number, report)
    director.ended(plan.number, "its host died")
    assert lab.of("tune") == events
    finals = [director.next_trial(), director.next_trial()]
    assert [isinstance(one, TrialPlan) for one in finals] == [last.failure is None, False], "one final run at most"
