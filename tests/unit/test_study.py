"""The memory of a search: what is told to it, and that a driver which follows a killed one finds all of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.search.config import Categorical, FloatRange, Objective, Sampler, Scheduler, SearchConfig, SearchFile
from pipeline.search.space import Space
from pipeline.search.study import Record, Study, forget_study, study_size

PARAMETERS = {
    "optimiser.head_lr": FloatRange(low=1e-4, high=1e-2, log=True),
    "model.levels": Categorical(choices=(["c4"], ["c4", "c5"])),
}
TRIALS, EPOCHS = 10, 4
Reopen = Callable[[], Study]


def config(**changed: object) -> SearchConfig:
    values = {"base": "cub100", "space": PARAMETERS, "sampler": Sampler(name="random"), **changed}
    return SearchConfig.model_validate(values)


SPACE = Space(SearchFile("x", "x.yaml", config(), dict.fromkeys(PARAMETERS, "x.yaml")))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take longest to make."""
    path = tmp_path_factory.mktemp("studies") / "deep" / "empty.db"
    study_size("s", f"sqlite:///{path}")
    return path


@pytest.fixture
def storage(empty: Path, tmp_path: Path) -> str:
    return copied(empty, tmp_path / "a.db")


@pytest.fixture
def other_storage(empty: Path, tmp_path: Path) -> str:
    return copied(empty, tmp_path / "b.db")


def copied(empty: Path, path: Path) -> str:
    shutil.copy(empty, path)
    return f"sqlite:///{path}"


def opened(storage: str, **changed: object) -> Study:
    """As a driver that begins or follows another."""
    return Study("s", storage, config(**changed), SPACE)


def test_a_trial_from_its_proposal_to_its_end(storage: str) -> None:
    study = opened(storage)
    record = study.propose()
    assert record == Record(0, "running", record.point, (), {}, "")
    assert record.point.keys() == PARAMETERS.keys()
    assert isinstance(record.point["model.levels"], list)
    assert study.left_running() == [record]
    assert not study.report(0, 1, 0.25, [0.25])
    assert not study.report(0, 2, 0.375, [0.25, 0.5])
    study.finish(0, [0.5])
    scores = {1: (0.25,), 2: (0.25, 0.5)}
    assert study.records() == [Record(0, "finished", record.point, (0.5,), scores, "")]
    assert study.left_running() == []


def test_each_end_of_a_trial_has_its_state(storage: str) -> None:
    study = opened(storage)
    for _ in range(5):
        study.propose()
    study.report(1, 1, 0.25, [0.25])
    study.finish(0, [0.5])
    study.stop(1)
    study.fail(2, "out-of-memory: it is full")
    study.repeat(3, twin=0)
    records = study.records()
    assert [record.state for record in records] == ["finished", "stopped", "failed", "repeated", "running"]
    assert records[1].values == (0.25,), "the sampler knows the last score of a stopped trial"
    assert records[2].reason == "out-of-memory: it is full"
    assert records[3].values == (0.5,), "a repeated trial takes its twin's values over"


def test_a_repeated_trial_has_no_values_where_its_twin_has_none(storage: str) -> None:
    study = opened(storage)
    for _ in range(4):
        study.propose()
    study.report(0, 1, 0.5, [0.5])
    study.stop(0)
    study.repeat(1, twin=0)
    study.repeat(3, twin=2)
    records = study.records()
    assert [record.state for record in records] == ["stopped", "repeated", "running", "repeated"]
    assert records[1].values == records[3].values == ()


def test_what_is_told_after_a_trials_end_changes_nothing(storage: str) -> None:
    study = opened(storage)
    study.propose()
    study.finish(0, [0.5])
    before = study.records()
    study.finish(0, [0.25])
    study.stop(0)
    assert study.records() == before


def test_a_step_that_is_reported_twice_changes_nothing(storage: str) -> None:
    study = opened(storage)
    study.propose()
    for step in (1, 2, 3):
        study.report(0, step, step / 10, [step / 10])
    before = study.records()
    for step in (1, 2, 3):
        assert not study.report(0, step, 0.9, [0.9])
    assert study.records() == before
    study.stop(0)
    assert study.records()[0].values == (0.3,)


def test_a_driver_that_follows_finds_what_was_running_and_goes_on(storage: str) -> None:
    first = opened(storage)
    points = [first.propose().point for _ in range(3)]
    first.finish(0, [0.5])
    first.report(1, 1, 0.25, [0.25])
    second = opened(storage)
    left = second.left_running()
    assert [(record.number, record.point) for record in left] == [(1, points[1]), (2, points[2])]
    assert left[0].scores == {1: (0.25,)}
    second.report(1, 1, 0.25, [0.25])
    second.report(1, 2, 0.3, [0.3])
    second.finish(1, [0.3])
    second.fail(2, "workers-lost: gone")
    assert [record.state for record in second.records()] == ["finished", "finished", "failed"]
    assert first.records() == second.records()


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2"])
def test_a_driver_that_follows_does_not_propose_the_first_points_again(storage: str, sampler: str) -> None:
    changed = {"sampler": Sampler(name=sampler, startup_trials=2)}
    study, rates = opened(storage, **changed), []
    for number in range(4):
        if number in (1, 3):
            study = opened(storage, **changed)
        rates.append(study.propose().point["optimiser.head_lr"])
        study.finish(number, [0.5])
    assert len(set(rates)) == 4


def test_the_seed_decides_over_the_points(storage: str, other_storage: str) -> None:
    first = [opened(storage).propose().point, opened(storage).propose().point]
    assert first == [opened(other_storage).propose().point, opened(other_storage).propose().point]
    forget_study("s", storage)
    assert opened(storage, sampler=Sampler(name="random", seed=1)).propose().point != first[0]


def searched(reopen: Reopen, cut_after: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Two trials at a time, their scores given by number and epoch; returns the decisions.

    After each of the numbers of decisions in `cut_after` the driver is killed: its successor hears of every epoch again.
    """
    study, decisions = reopen(), []
    scores = {number: random.Random(number).random() for number in range(TRIALS)}
    at: dict[int, int] = {}
    begun = 0
    while begun < TRIALS or at:
        while begun < TRIALS and len(at) < 2:
            assert study.propose().number == begun
            at[begun], begun = 0, begun + 1
        for number in sorted(at):
            at[number] += 1
            step = at[number]
            score = scores[number] + 0.01 * step
            stop = study.report(number, step, score, [score])
            decisions.append((number, step, stop))
            if stop:
                study.stop(number)
            elif step == EPOCHS:
                study.finish(number, [score])
            if stop or step == EPOCHS:
                del at[number]
            if len(decisions) in cut_after:
                study = reopen()
                assert {record.number for record in study.left_running()} == at.keys()
                for left, last in at.items():
                    for again in range(1, last + 1):
                        score = scores[left] + 0.01 * again
                        assert not study.report(left, again, score, [score])
    return decisions


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_stopping_decides_the_same_however_often_the_driver_was_killed(
    storage: str, other_storage: str, scheduler: str
) -> None:
    changed = {"scheduler": Scheduler(name=scheduler, reduction=2)}
    undisturbed = searched(lambda: opened(storage, **changed), ())
    assert 0 < sum(stop for _, _, stop in undisturbed) < TRIALS
    assert searched(lambda: opened(other_storage, **changed), (1, 2, 5, 7, 11)) == undisturbed


def test_no_trial_is_stopped_before_its_grace_and_none_without_a_scheduler(storage: str, other_storage: str) -> None:
    late = searched(lambda: opened(storage, scheduler=Scheduler(name="asha", grace_epochs=2)), ())
    assert min(step for _, step, stop in late if stop) == 2
    never = searched(lambda: opened(other_storage, scheduler=Scheduler(name="none")), ())
    assert not any(stop for _, _, stop in never)


def test_two_objectives_are_kept_and_nothing_is_stopped(storage: str) -> None:
    changed = {"objective": Objective(cost="parameters"), "scheduler": Scheduler(name="none")}
    study = opened(storage, sampler=Sampler(name="nsga2"), **changed)
    for number in range(3):
        study.propose()
        for step in (1, 1, 2):
            assert not study.report(number, step, 0.1 * step, [0.1 * step])
    study.finish(0, [0.5, 1000])
    study.repeat(1, twin=0)
    followed = opened(storage, sampler=Sampler(name="nsga2"), **changed)
    assert [record.number for record in followed.left_running()] == [2]
    assert followed.left_running()[0].scores == {1: (0.1,), 2: (0.2,)}
    followed.fail(2, "x")
    assert [record.values for record in followed.records()] == [(0.5, 1000), (0.5, 1000), ()]
    followed.propose()


def test_the_base_is_the_first_trial_of_a_new_study_alone(storage: str) -> None:
    base = {"optimiser.head_lr": 0.005, "model.levels": "[c4, c5]"}
    study = opened(storage)
    study.begin_with(base)
    assert study.records() == []
    assert study_size("s", storage) == 0
    followed = opened(storage)
    followed.begin_with(base)
    assert followed.propose().point == {"optimiser.head_lr": 0.005, "model.levels": ["c4", "c5"]}
    assert followed.propose().point["optimiser.head_lr"] != 0.005


def test_words_about_the_study_are_remembered(storage: str) -> None:
    opened(storage).remember("driver", "host:1:2.0")
    assert opened(storage).remembered("driver") == "host:1:2.0"
    assert opened(storage).remembered("outcome") is None


def test_a_study_is_counted_without_repetitions_and_forgotten(storage: str) -> None:
    assert study_size("s", storage) is None
    study = opened(storage)
    for _ in range(3):
        study.propose()
    study.fail(1, "x")
    study.repeat(2, twin=0)
    assert study_size("s", storage) == 2
    forget_study("another", storage)
    forget_study("s", storage)
    assert study_size("s", storage) is None
    assert opened(storage).records() == []


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:secret@127.0.0.1:9/x",
        "postgresql+psycopg2://user:secret@127.0.0.1:9/x",
        "postgresql://127.0.0.1:9/x?user=me&password=secret",
        "postgresql://user:secret@127.0.0.1:port/x",
        "postgresql//user:secret@127.0.0.1/x",
        "oracle://user:secret@127.0.0.1:9/x",
        "nonsense",
        "",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///{folder}/a-file/studies.db",
        "sqlite:///{folder}/a-file",
        "sqlite:///{folder}",
    ],
)
def test_a_database_out_of_reach_is_one_sentence_without_a_password(tmp_path: Path, address: str) -> None:
    (tmp_path / "a-file").write_text("no database\n" * 100)
    address = address.format(folder=tmp_path)
    for attempt in (study_size, forget_study, lambda name, url: Study(name, url, config(), SPACE)):
        with pytest.raises(UserError) as caught:
            attempt("s", address)
        text = str(caught.value)
        assert "secret" not in text and "\n" not in text
        assert "--study-storage" in text and ("database" in text)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsga2", "nsga3"])
def test_the_largest_seeds_also_follow_a_killed_driver(storage: str, sampler: str) -> None:
    """numpy takes 32 bits; the seed is moved on by what the study holds, and a config may hold any seed from 0 on."""
    for seed in (2**32 - 1, 2**40):
        chosen = Sampler(name=sampler, seed=seed)
        opened(storage, sampler=chosen).propose()
        opened(storage, sampler=chosen).propose()
    assert len(opened(storage).records()) == 4
