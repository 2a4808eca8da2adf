"""Study of a search: what is stored in it, and that a driver which follows a killed one finds all of it."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import pytest

from mgmrn.errors import UserError
from pipeline.search import study as study_module
from pipeline.search.config import Categorical, FloatRange, Objective, Sampler, Scheduler, SearchConfig, SearchFile
from pipeline.search.space import Space
from pipeline.search.study import Record, Study

PARAMETERS = {
    "optimiser.head_lr": FloatRange(low=1e-4, high=1e-2, log=True),
    "model.levels": Categorical(choices=(["c4"], ["c4", "c5"])),
}
TRIALS, EPOCHS = 10, 4


def config(**changed: object) -> SearchConfig:
    values = {"base": "cub100", "space": PARAMETERS, "sampler": Sampler(name="random"), **changed}
    return SearchConfig.model_validate(values)


SPACE = Space(SearchFile("x", "x.yaml", config(), dict.fromkeys(PARAMETERS, "x.yaml")))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('studies')}/deep/a.db"


@pytest.fixture
def storage(database: str) -> Iterator[str]:
    """A database without a study: its tables, which take longest to make, stay from test to test."""
    yield database
    opened(database).delete()


def opened(storage: str, **changed: object) -> Study:
    """Study of a driver that begins the search, or follows another one."""
    return Study("s", storage, config(**changed), SPACE)


def test_a_trial_from_its_proposal_to_its_end(storage: str) -> None:
    study = opened(storage)
    record = study.propose()
    assert record == Record(0, "running", record.point, (), {}, "")
    assert record.point.keys() == PARAMETERS.keys() and isinstance(record.point["model.levels"], list)
    assert study.records() == [record]
    assert not study.report(0, 1, 0.25, [0.25])
    assert not study.report(0, 2, 0.375, [0.25, 0.5])
    study.end(0, "finished", [0.5])
    scores = {1: (0.25,), 2: (0.25, 0.5)}
    assert study.records() == [Record(0, "finished", record.point, (0.5,), scores, "")]
    study.end(0, "finished", [0.25])
    study.end(0, "stopped")
    assert study.records()[0].values == (0.5,), "an end after the end changes nothing"


def test_each_end_of_a_trial_has_its_state(storage: str) -> None:
    study = opened(storage)
    for _ in range(7):
        study.propose()
    study.report(1, 1, 0.25, [0.25])
    study.end(0, "finished", [0.5])
    study.end(1, "stopped")
    study.end(2, "failed", reason="out-of-memory: it is full")
    for number, twin in ((3, 0), (4, 1), (5, 6)):
        study.repeat(number, twin)
    records = study.records()
    assert [one.state for one in records] == ["finished", "stopped", "failed", *["repeated"] * 3, "running"]
    assert records[1].values == (0.25,), "the last score of a stopped trial is kept for the sampler"
    assert records[2].reason == "out-of-memory: it is full"
    assert [one.values for one in records[3:6]] == [(0.5,), (), ()], "values of a twin that has finished"
    assert study.size == 4, "repetitions do not count"
    study.delete()
    assert opened(storage).records() == []


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2"])
def test_a_driver_that_follows_does_not_propose_the_first_points_again(storage: str, sampler: str) -> None:
    """With the largest seed: numpy takes 32 bits, and the seed is moved on by what the study holds."""
    changed = {"sampler": Sampler(name=sampler, startup_trials=2, seed=2**32 - 1)}
    rates = []
    for number in range(3):
        study = opened(storage, **changed)
        rates.append(study.propose().point["optimiser.head_lr"])
        study.end(number, "finished", [0.5])
    assert len(set(rates)) == 3


def test_the_seed_decides_over_the_points(storage: str) -> None:
    first = [opened(storage).propose().point, opened(storage).propose().point]
    opened(storage).delete()
    assert first == [opened(storage).propose().point, opened(storage).propose().point]
    opened(storage).delete()
    assert opened(storage, sampler=Sampler(name="random", seed=1)).propose().point != first[0]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies in memory, apart by their address: decisions about stopping do not depend on the database."""
    storages: dict[str, optuna.storages.InMemoryStorage] = defaultdict(optuna.storages.InMemoryStorage)
    monkeypatch.setattr(study_module, "_storage", storages.__getitem__)


def percent(step: int) -> int:
    return 100 * step // EPOCHS


def searched(reopen: Callable[[], Study], cut_after: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Run two trials at a time; after these numbers of decisions, which it returns, the next driver receives every epoch again."""
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
            stop = study.report(number, percent(step), score, [score])
            decisions.append((number, step, stop))
            if stop or step == EPOCHS:
                study.end(number, "stopped" if stop else "finished", None if stop else [score])
                del at[number]
            if len(decisions) in cut_after:
                study = reopen()
                assert [record.number for record in study.records() if record.state == "running"] == sorted(at)
                for left, last in at.items():
                    for again in range(1, last + 1):
                        score = scores[left] + 0.01 * again
                        assert not study.report(left, percent(again), score, [score])
    return decisions


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_stopping_decides_the_same_however_often_the_driver_was_killed(memory: None, scheduler: str) -> None:
    changed = {"scheduler": Scheduler(name=scheduler, reduction=2)}
    undisturbed = searched(lambda: opened("a", **changed), ())
    assert 0 < sum(stop for _, _, stop in undisturbed) < TRIALS
    assert searched(lambda: opened("b", **changed), (1, 2, 5, 7, 11)) == undisturbed


def test_no_trial_is_stopped_before_its_grace_and_none_without_a_scheduler(memory: None) -> None:
    late = searched(lambda: opened("a", scheduler=Scheduler(name="asha", grace_percent=50)), ())
    assert min(step for _, step, stop in late if stop) == 2
    never = searched(lambda: opened("b", scheduler=Scheduler(name="none")), ())
    assert not any(stop for _, _, stop in never)


def test_two_objectives_are_kept_and_nothing_is_stopped(storage: str) -> None:
    changed = {"objective": Objective(cost="parameters"), "scheduler": Scheduler(name="none")}
    study = opened(storage, sampler=Sampler(name="nsga2"), **changed)
    for number in range(2):
        study.propose()
        for step in (1, 1, 2):
            assert not study.report(number, step, 0.1 * step, [0.1 * step])
    study.end(0, "finished", [0.5, 1000])
    study.repeat(1, twin=0)
    followed = opened(storage, sampler=Sampler(name="nsga2"), **changed)
    assert [record.values for record in followed.records()] == [(0.5, 1000), (0.5, 1000)]
    assert followed.records()[0].scores == {1: (0.1,), 2: (0.2,)}


def test_the_base_is_the_first_trial_of_a_new_study_alone(storage: str) -> None:
    base = {"optimiser.head_lr": 0.005, "model.levels": "[c4, c5]"}
    study = opened(storage)
    study.begin_with(base)
    assert study.records() == [] and study.size == 0
    followed = opened(storage)
    followed.begin_with(base)
    assert followed.propose().point == {"optimiser.head_lr": 0.005, "model.levels": ["c4", "c5"]}
    assert followed.propose().point["optimiser.head_lr"] != 0.005


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:secret@127.0.0.1:9/x",
        "postgresql://127.0.0.1:9/x?user=me&password=secret",
        "postgresql://user:secret@127.0.0.1:port/x",
        "postgresql//user:secret@127.0.0.1/x",
        "oracle://user:secret@127.0.0.1:9/x",
        "",
        "sqlite:///:memory:",
        "sqlite:///{folder}/a-file/studies.db",
        "sqlite:///{folder}/a-file",
        "sqlite:///{folder}",
    ],
)
def test_a_database_out_of_reach_is_one_sentence_without_a_password(tmp_path: Path, address: str) -> None:
    (tmp_path / "a-file").write_text("no database\n" * 100)
    address = address.format(folder=tmp_path)
    with pytest.raises(UserError) as caught:
        opened(address)
    text = str(caught.value)
    assert "secret" not in text and "\n" not in text
    assert "--study-storage" in text and "database" in text
