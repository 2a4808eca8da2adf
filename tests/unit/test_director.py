"""The course of a search with no Ray, store or training behind it: what is run, what is counted, what is told to the study."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest

from pipeline.search import director as director_module
from pipeline.search import study as study_module
from pipeline.search import tracked_trial
from pipeline.search.board import Board
from pipeline.search.config import Categorical, FloatRange, Objective, Sampler, Scheduler, SearchConfig, SearchFile
from pipeline.search.course import best_record
from pipeline.search.director import SearchDirector, Tunables
from pipeline.search.space import Space
from pipeline.search.study import Study
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.tracked import Opening
from pipeline.trials import site as site_module
from pipeline.trials.plan import Pool, TrialPlan, TrialReport
from pipeline.trials.site import Clerk, Site

RATE = {"optimiser.head_lr": FloatRange(low=1e-4, high=1e-2, log=True)}
TEMPERATURE = {"model.decoder.temperature": Categorical(choices=("none", "sqrt"))}
FIXED = {"model.backbone.weights": "none", "model.width": 64, "schedule.epochs": 4}
LATE = Failure("out-of-memory", "the device is full")


def config(space: Mapping[str, Any] = RATE, **changed: Any) -> SearchConfig:
    quiet = {"sampler": Sampler(name="random"), "scheduler": Scheduler(name="none")}
    return SearchConfig(base="synthetic", fixed=FIXED, space=dict(space), **(quiet | changed))


@dataclass
class Store:
    """Says which cells are finished, and takes the parent's metrics."""

    finished: dict[str, Any] = field(default_factory=dict)
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def find_finished(self, config_hash: str, split: str) -> Any:
        return self.finished.get(config_hash)

    def append(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))


@dataclass
class Lab:
    """A search's parts, and what became of each tracked run."""

    store: Store = field(default_factory=Store)
    events: list[tuple[str, str]] = field(default_factory=list)
    """Run's name → opened, resumed, finished, failed, killed, closed."""
    shown: io.StringIO = field(default_factory=io.StringIO)
    clerk: Clerk = field(default_factory=Clerk)

    def study(self, config: SearchConfig) -> Study:
        return Study("s", "memory", config, self.space(config))

    def space(self, config: SearchConfig) -> Space:
        return Space(SearchFile("x", "x.yaml", config, dict.fromkeys([*config.space, *FIXED], "x.yaml")))

    def tunables(self, config: SearchConfig) -> Tunables:
        data = {
            name: SimpleNamespace(split="tune", digest=f"of {name}", benchmark=name or "SYN")
            for name in config.benchmarks or (None,)
        }
        return Tunables(cast(Any, data), Path("/data"))

    def site(self) -> Site:
        pool = Pool(2, Placement(workers=1, cpus_per_worker=1, gpus_per_worker=0))
        opening = Opening("s", "parent", pool.placement)
        return Site(cast(Any, self.store), opening, Path("/data"), Path("/runs"), pool, self.clerk)

    def director(
        self, config: SearchConfig, references: Mapping[str | None, float] | None = None, deadline: float | None = None
    ) -> SearchDirector:
        """As a driver that begins or follows another."""
        board = Board("x", config.trials, "AUSUC", self.shown)
        references = references or dict.fromkeys(config.benchmarks or (None,), 1.0)
        study, space = self.study(config), self.space(config)
        return SearchDirector(config, study, space, self.site(), self.tunables(config), references, board, deadline)

    def states(self, config: SearchConfig) -> list[str]:
        return [record.state for record in self.study(config).records()]

    def of(self, name: str) -> list[str]:
        """What became of a run, once all errands are done."""
        self.clerk.finish()
        return [event for event, run in self.events if name in run]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The study is kept in memory, and the tracking store is a list of events."""
    lab = Lab()
    memory = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(study_module, "_storage", lambda url: memory)

    def open_run(store: Any, cell: Any, spec: Any, opening: Any) -> Any:
        lab.events.append(("opened" if opening.restart else "resumed", cell.name))
        return SimpleNamespace(
            run_id=f"id of {cell.name}",
            finished=lambda fitted: lab.events.append((f"finished {fitted}", cell.name)),
            failed=lambda failure: lab.events.append((f"failed {failure.reason}", cell.name)),
            killed=lambda reason: lab.events.append((f"killed {reason}", cell.name)),
            close=lambda: lab.events.append(("closed", cell.name)),
        )

    monkeypatch.setattr(tracked_trial, "open_run", open_run)
    monkeypatch.setattr(site_module, "parent_spool", lambda storage, run_id: lab.store)
    fitted = SimpleNamespace(from_checkpoint=lambda folder, metrics: folder.name)
    monkeypatch.setattr(tracked_trial, "Fitted", fitted)
    yield lab
    lab.clerk._pool.shutdown()


def epoch(run: int, steps: int, score: float, **figures: float) -> TrialReport:
    return TrialReport(
        run=run, steps=steps, metrics={"epoch": steps, "val/ausuc": score, "val/gzsl_h": score / 2, **figures}
    )


def end(run: int, steps: int, score: float, **figures: float) -> TrialReport:
    return epoch(run, steps, score, **figures).model_copy(update={"checkpoint": f"/runs/checkpoint_{run}"})


def failed(run: int, steps: int) -> TrialReport:
    failure = {"reason": LATE.reason, "message": LATE.message, "where": "", "hint": ""}
    return TrialReport(run=run, steps=steps, failure=failure)


def run_to_end(director: SearchDirector, plan: TrialPlan, score: float) -> None:
    for run in range(len(plan.runs)):
        for steps in range(4 * run + 1, 4 * run + 5):
            assert not director.reported(plan.number, epoch(run, steps, score))
        assert not director.reported(plan.number, end(run, 4 * run + 4, score))
    director.ended(plan.number, None)


def run_all(director: SearchDirector, score: Callable[[int], float] = lambda number: 0.5) -> list[int]:
    """One trial after another; returns their numbers."""
    numbers = []
    while plan := director.next_trial():
        numbers.append(plan.number)
        run_to_end(director, plan, score(plan.number))
    return numbers


def test_just_so_many_trials_are_run_as_were_asked_for(lab: Lab) -> None:
    search = config(trials=3)
    assert run_all(lab.director(search), lambda number: number / 10) == [0, 1, 2]
    records = lab.study(search).records()
    assert [(record.state, record.values) for record in records] == [("finished", (n / 10,)) for n in range(3)]
    lab.clerk.finish()
    assert [step for step, _ in lab.store.logged] == [0, 1, 2]
    assert lab.store.logged[2][1] == {"search/score": 0.2, "search/best": 0.2}


def test_trials_that_run_count_too(lab: Lab) -> None:
    director = lab.director(config(trials=2))
    assert director.next_trial() is not None and director.next_trial() is not None
    assert director.next_trial() is None


def test_a_plan_holds_a_tune_run_for_every_benchmark_and_seed(lab: Lab) -> None:
    search = config(trials=1, benchmarks=("synthetic", "cub100"), seeds=(3, 5))
    plan = lab.director(search).next_trial()
    assert plan is not None
    runs = [(spec.config.benchmark.name, spec.config.seed, spec.split, spec.calibration) for spec in plan.runs]
    assert runs == [(name, seed, "tune", None) for name in ("SYN", "CUB100") for seed in (3, 5)]
    assert len({spec.run_folder for spec in plan.runs}) == 4


def test_a_proposal_that_repeats_is_neither_run_nor_counted(lab: Lab) -> None:
    search = config(TEMPERATURE, trials=5)
    assert len(run_all(lab.director(search))) == 2
    states = lab.states(search)
    assert states.count("finished") == 2 and set(states) == {"finished", "repeated"}
    assert len(lab.of("")) == 6, "two runs were opened, finished and closed"
    assert run_all(lab.director(search)) == [], "a driver that follows knows them"


def test_a_repetition_takes_over_what_its_twin_came_to(lab: Lab) -> None:
    search = config(TEMPERATURE, trials=2)
    study = lab.study(search)
    for choice in ("none", "none", "sqrt"):
        study.optuna.enqueue_trial({"model.decoder.temperature": choice})
    assert run_all(lab.director(search), lambda number: 0.1 + number) == [0, 2]
    assert [record.values for record in study.records()] == [(0.1,), (0.1,), (2.1,)]


def test_a_config_that_does_not_compose_fails_and_counts(lab: Lab) -> None:
    search = config(TEMPERATURE | {"model.granularity.group_norm_groups": Categorical(choices=(32, 64))}, trials=3)
    # Apart from this one value the space is fine: what does not fit together shows only when it is drawn.
    broken = config(search.space | {"model.width": Categorical(choices=(32, 64))}, trials=3, scheduler=search.scheduler)
    broken = broken.model_copy(update={"fixed": {path: one for path, one in FIXED.items() if path != "model.width"}})
    study = lab.study(broken)
    for width in ("32", "64", "64"):
        values = {"model.width": width, "model.granularity.group_norm_groups": "64"}
        study.optuna.enqueue_trial(values | {"model.decoder.temperature": "none" if width == "32" else "sqrt"})
    numbers = run_all(lab.director(broken))
    records = study.records()
    assert records[0].state == "failed"
    assert records[0].reason.startswith("bad-input: ") and "must be a multiple of" in records[0].reason
    assert 0 not in numbers and sum(record.state != "repeated" for record in records) == 3
    assert "trial 0 failed: " in lab.shown.getvalue()


def test_after_the_deadline_no_new_trial_starts_and_those_that_run_are_finished(lab: Lab) -> None:
    search = config(trials=3)
    director = lab.director(search, deadline=time.monotonic() + 60)
    plan = director.next_trial()
    assert plan is not None
    late = lab.director(search, deadline=time.monotonic() - 1)
    again = late.next_trial()
    assert again is not None and again.number == plan.number, "what an earlier driver began is finished"
    assert late.next_trial() is None
    run_to_end(late, again, 0.5)
    assert late.next_trial() is None
    assert lab.states(search) == ["finished"]


def test_trials_that_a_dead_driver_left_come_first_and_go_on(lab: Lab) -> None:
    search = config(trials=4)
    first = lab.director(search)
    plans = [first.next_trial() for _ in range(3)]
    assert plans[0] and plans[1] and plans[2]
    run_to_end(first, plans[0], 0.5)
    first.reported(1, epoch(0, 1, 0.2))
    second = lab.director(search)
    left = [second.next_trial() for _ in range(3)]
    assert [plan.number for plan in left if plan] == [1, 2, 3]
    assert left[0] == plans[1] and left[1] == plans[2]
    for steps in (1, 2, 3, 4):
        assert not second.reported(1, epoch(0, steps, 0.2 * steps))
    second.reported(1, end(0, 4, 0.8))
    assert lab.study(search).records()[1].values == (0.8,)
    assert second.next_trial() is None
    assert lab.of("t001")[:2] == ["opened", "resumed"] and lab.of("t003")[0] == "opened"


def test_a_trial_that_died_before_it_was_looked_at_is_looked_at_then(lab: Lab) -> None:
    """A driver can be killed between the proposal and its answer, be it `repeat` or `fail`."""
    space = TEMPERATURE | {
        "model.width": Categorical(choices=(64, 32)),
        "model.granularity.group_norm_groups": Categorical(choices=(32, 64)),
    }
    search = config(space, trials=3)
    search = search.model_copy(update={"fixed": {path: one for path, one in FIXED.items() if path != "model.width"}})
    study = lab.study(search)
    same = {"model.width": "64", "model.granularity.group_norm_groups": "32", "model.decoder.temperature": "none"}
    for values in (same, same, same | {"model.width": "32", "model.granularity.group_norm_groups": "64"}):
        study.optuna.enqueue_trial(values)
        study.propose()
    director = lab.director(search)
    plan = director.next_trial()
    assert plan is not None and plan.number == 0
    following = director.next_trial()
    assert following is not None and following.number > 2
    assert lab.states(search)[:3] == ["running", "repeated", "failed"]


def test_runs_that_were_finished_are_not_opened_again(lab: Lab) -> None:
    search = config(trials=1, seeds=(0, 1))
    first = lab.director(search)
    plan = first.next_trial()
    assert plan is not None
    space = lab.space(search)
    cell = lab.tunables(search).cell(space.compose(lab.study(search).records()[0].point, None), None, 0, "t000")
    lab.store.finished[cell.config_hash] = SimpleNamespace(parent_run_id="parent")
    second = lab.director(search)
    again = second.next_trial()
    assert again == plan
    run_to_end(second, again, 0.5)
    assert lab.of("s0") == ["opened"]
    assert lab.of("s1") == ["resumed", "finished checkpoint_1", "closed"]


def test_a_failure_ends_the_trial_as_failed(lab: Lab) -> None:
    search = config(trials=2)
    director = lab.director(search)
    plan = director.next_trial()
    assert plan is not None
    director.reported(0, epoch(0, 1, 0.5))
    assert not director.reported(0, failed(0, 1))
    director.ended(0, None)
    (record,) = lab.study(search).records()
    assert (record.state, record.reason) == ("failed", "out-of-memory: the device is full")
    assert lab.of("t000") == ["opened", "failed out-of-memory", "closed"]
    assert director.next_trial() is not None and director.next_trial() is None


@pytest.mark.parametrize(("error", "message"), [("its host died", "its host died"), (None, "without a result")])
def test_a_trial_that_is_lost_ends_as_failed(lab: Lab, error: str | None, message: str) -> None:
    search = config(trials=1)
    director = lab.director(search)
    assert director.next_trial() is not None
    director.ended(0, error)
    (record,) = lab.study(search).records()
    assert record.state == "failed" and message in record.reason
    assert lab.of("t000") == ["opened", "failed workers-lost", "closed"]


def test_a_trial_that_is_stopped_is_killed_and_told_nothing_more(lab: Lab) -> None:
    search = config(trials=2, scheduler=Scheduler(name="asha", reduction=2))
    director = lab.director(search)
    plans = [director.next_trial(), director.next_trial()]
    assert all(plans)
    assert not director.reported(0, epoch(0, 1, 0.5))
    assert director.reported(1, epoch(0, 1, 0.1))
    assert not director.reported(1, epoch(0, 2, 0.9)), "what was on its way comes to nothing"
    director.ended(1, None)
    assert lab.states(search) == ["running", "stopped"]
    assert lab.study(search).records()[1].values == (0.1,)
    assert lab.of("t001") == ["opened", "killed stopped early", "closed"]
    assert "trial 1 stopped early" in lab.shown.getvalue()


def test_an_interrupted_search_ends_its_open_runs_and_is_gone_on_with(lab: Lab) -> None:
    search = config(trials=2)
    director = lab.director(search)
    plans = [director.next_trial(), director.next_trial()]
    assert plans[0] and plans[1]
    run_to_end(director, plans[0], 0.5)
    director.interrupted("interrupted")
    assert lab.of("t000")[-1] == "closed"
    assert lab.of("t001") == ["opened", "killed interrupted", "closed"]
    assert lab.states(search) == ["finished", "running"]
    assert lab.director(search).next_trial() == plans[1]


def test_a_trial_at_its_last_epoch_is_finished_not_stopped(lab: Lab) -> None:
    search = config(trials=2, scheduler=Scheduler(name="asha", reduction=4))
    director = lab.director(search)
    plans = [director.next_trial(), director.next_trial()]
    assert all(plans)
    for steps, score in enumerate((0.5, 0.9, 0.9, 0.9), start=1):
        assert not director.reported(0, epoch(0, steps, score))
    for steps, score in enumerate((0.6, 0.8, 0.9, 0.2), start=1):
        assert not director.reported(1, epoch(0, steps, score))
    director.reported(1, end(0, 3, 0.95))
    assert lab.study(search).records()[1].values == (0.95,)


def test_the_figures_of_the_epoch_that_counts_decide_not_those_of_the_last(lab: Lab) -> None:
    search = config(trials=1, seeds=(0, 1), objective=Objective(metric="h"))
    director = lab.director(search)
    assert director.next_trial() is not None
    for steps, score in enumerate((0.2, 0.8, 0.4, 0.4), start=1):
        director.reported(0, epoch(0, steps, score))
    director.reported(0, end(0, 4, 0.8))
    for steps, score in enumerate((0.2, 0.4, 0.6, 0.2), start=5):
        director.reported(0, epoch(1, steps, score))
    director.reported(0, end(1, 8, 0.6))
    (record,) = lab.study(search).records()
    assert record.values == (pytest.approx((0.4 + 0.3) / 2),)
    assert record.scores[2] == (0.4,) and record.scores[5] == (0.4, 0.1)
    assert record.scores[8] == (0.4, 0.3)
    assert [event for event in lab.of("t000") if "finished" in event] == [
        "finished checkpoint_0",
        "finished checkpoint_1",
    ]


def test_a_trial_that_is_started_again_records_no_run_twice(lab: Lab) -> None:
    """Its process or host died in the second run: it tells of the first one once more."""
    search = config(trials=1, seeds=(0, 1))
    director = lab.director(search)
    plan = director.next_trial()
    assert plan is not None
    for steps in (1, 2, 3, 4):
        director.reported(0, epoch(0, steps, 0.5))
    director.reported(0, end(0, 4, 0.5))
    director.reported(0, epoch(1, 5, 0.3))
    run_to_end(director, plan, 0.5)
    assert lab.of("s0") == ["opened", "finished checkpoint_0", "closed"]
    assert lab.of("s1") == ["opened", "finished checkpoint_1", "closed"]
    assert lab.study(search).records()[0].values == (0.5,)


def test_several_benchmarks_are_brought_to_the_scale_of_the_base(lab: Lab) -> None:
    search = config(trials=1, benchmarks=("synthetic", "cub100"))
    director = lab.director(search, references={"synthetic": 0.5, "cub100": 0.25})
    assert director.next_trial() is not None
    for steps in (1, 2, 3, 4):
        director.reported(0, epoch(0, steps, 0.6))
    director.reported(0, end(0, 4, 0.6))
    director.reported(0, epoch(1, 5, 0.2))
    intermediate = lab.study(search).optuna.trials[0].intermediate_values
    assert intermediate[4] == pytest.approx(1.2)
    assert intermediate[5] == pytest.approx((1.2 + 0.8) / 2)
    director.reported(0, end(1, 8, 0.3))
    assert lab.study(search).records()[0].values == (pytest.approx(1.2),)


def test_ranks_compare_with_the_others_at_the_same_step_not_with_oneself(lab: Lab) -> None:
    search = config(
        trials=3, benchmarks=("synthetic", "cub100"), objective=Objective(combine="mean_rank"), confirm_seeds=3
    )
    director = lab.director(search)
    plans = [director.next_trial() for _ in range(3)]
    for plan, score in zip(plans, (0.5, 0.7, 0.9), strict=True):
        assert plan is not None
        run_to_end(director, plan, score)
    records = lab.study(search).records()
    assert [record.values for record in records] == [(0.5,), (1.0,), (1.0,)]
    best = best_record(search, records)
    assert best is not None and best.number == 2


def test_ranks_name_the_best_by_the_epochs_that_count(lab: Lab) -> None:
    search = config(trials=2, benchmarks=("synthetic", "cub100"), objective=Objective(combine="mean_rank"))
    director = lab.director(search)
    for last, best in ((0.6, 0.6), (0.1, 0.9)):
        plan = director.next_trial()
        assert plan is not None
        for run in (0, 1):
            for steps in range(4 * run + 1, 4 * run + 5):
                director.reported(plan.number, epoch(run, steps, last))
            director.reported(plan.number, end(run, 4 * run + 4, best))
    best_of = best_record(search, lab.study(search).records())
    assert best_of is not None and best_of.number == 1


def test_the_cost_is_a_second_value(lab: Lab) -> None:
    search = config(trials=1, objective=Objective(cost="parameters"))
    director = lab.director(search)
    assert director.next_trial() is not None
    figures = {"perf/parameters": 1000.0, "perf/step_ms": 5.0}
    director.reported(0, epoch(0, 4, 0.5, **figures))
    director.reported(0, end(0, 4, 0.5, **figures))
    assert lab.study(search).records()[0].values == (0.5, 1000.0)


def test_a_space_that_is_used_up_ends_the_search(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director_module, "LARGEST_STREAK", 4)
    search = config(TEMPERATURE, trials=100)
    run_all(lab.director(search))
    assert lab.states(search)[-4:] == ["repeated"] * 4
