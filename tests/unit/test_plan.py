"""Plans: state and reason of each cell by the runs in the store, and the cost of the rest. Nothing runs or is stored."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ablation import plan as plan_module
from pipeline.ablation.grid import GridCell, make_cells, make_grid
from pipeline.ablation.plan import PlannedCell, Survey, plan_to_json, proposed_part, total_cost
from pipeline.cli.ablation_verbs import show_plan
from pipeline.console import Console
from pipeline.driver import driver_tag
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.spec import Calibration
from pipeline.trials import known as known_module
from pipeline.trials.known import Cost
from tests.grids import DEAD_DRIVER, DECIDED, SMOOTH, a_run, cells_of, plan_of, run_in, write_data, write_grid
from tests.tiny import ATTRIBUTES, WORD_LENGTH

TUNED = "its tune run is done"
GOES_ON = ("new", "was cut off and goes on from its checkpoint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data in `data`, and other data of the same name in `changed`."""
    path = tmp_path_factory.mktemp("plan")
    write_data(path / "data")
    write_data(path / "changed", word_vectors=np.ones((ATTRIBUTES, WORD_LENGTH)))
    return path


@pytest.fixture(scope="module")
def cells(folder: Path) -> list[GridCell]:
    """base and smooth with one seed."""
    return cells_of(write_grid(folder), folder / "data")


@pytest.fixture
def cell(cells: list[GridCell]) -> GridCell:
    return cells[0]


def both(cell: GridCell, **more: Any) -> tuple[TrackedRun, TrackedRun]:
    """Runs of a finished cell."""
    return a_run(cell.tune, **more), a_run(cell.final(DECIDED), **more)


def state_of(cell: GridCell, *runs: TrackedRun) -> tuple[str, str]:
    """State and reason, with the latest run named last."""
    (planned,) = plan_of([cell], *runs)
    return planned.state, planned.reason


def without(run: TrackedRun, tag: str, **changed: str) -> TrackedRun:
    tags = {name: value for name, value in run.tags.items() if name != tag}
    return replace(run, tags=tags | {f"mgmrn.{name}": value for name, value in changed.items()})


def test_a_cell_is_new_then_tuned_then_cached(cells: list[GridCell]) -> None:
    cell, smooth = cells
    assert plan_of([cell]) == [PlannedCell(cell, "new")]
    assert state_of(cell, *both(smooth)) == ("new", ""), "runs of another variant"
    tune, final = both(cell)
    assert state_of(cell, final) == ("new", ""), "the calibration is not known"
    (planned,) = plan_of([cell], tune)
    assert (planned.state, planned.reason, planned.tune, planned.calibration) == ("new", TUNED, tune, DECIDED)
    (planned,) = plan_of([cell], tune, final)
    assert planned == PlannedCell(cell, "cached", "", tune, final, Cost(0, 0))
    later = both(cell)
    (planned,) = plan_of([cell], tune, final, *later)
    assert (planned.tune, planned.evaluated) == later
    again = a_run(cell.tune, "FAILED", stop_reason="out-of-memory")
    assert state_of(cell, tune, final, again) == ("cached", ""), "a repetition that failed"
    assert state_of(cell, *both(cell, variant="mgmrn", study="small")) == ("cached", ""), "whatever its name"
    assert state_of(cell, *both(cell, kind="link")) == ("new", "")


def test_on_the_tune_split_the_tune_run_is_all(folder: Path) -> None:
    tuned, _ = cells_of(write_grid(folder, "split: tune\n" + SMOOTH, "tuned"), folder / "data")
    tune = a_run(tuned.tune)
    assert plan_of([tuned]) == [PlannedCell(tuned, "new")]
    assert plan_of([tuned], tune) == [PlannedCell(tuned, "cached", "", tune, tune, Cost(0, 0))]
    (planned,) = plan_of([tuned], a_run(tuned.tune, code_digest="of old code"))
    assert (planned.state, planned.cost) == ("stale", Cost(10, 0))


def test_a_run_of_an_older_schema_is_named(cell: GridCell) -> None:
    hashes = {f"{kind}_hash": "of schema 1" for kind in ("config", "group", "science")}
    old = a_run(cell.tune, schema="1", **hashes)
    assert state_of(cell, old) == ("new", "an earlier run belongs to schema 1 of the configs, now 2")


def test_a_final_run_counts_with_the_calibration_of_the_latest_tune_run_alone(cell: GridCell) -> None:
    other = Calibration(epochs=1, gamma=0.5)
    first, second = a_run(cell.final(other)), a_run(cell.final(DECIDED))
    assert state_of(cell, a_run(cell.tune), first) == ("new", TUNED)
    (planned,) = plan_of([cell], a_run(cell.tune), second, first)
    assert (planned.state, planned.evaluated) == ("cached", second)
    (planned,) = plan_of([cell], a_run(cell.tune), first, second, a_run(cell.tune, decided=other))
    assert (planned.evaluated, planned.calibration) == (first, other)


def test_other_code_makes_a_cell_stale(cell: GridCell, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = both(cell)
    for old in (0, 1):
        mixed = [without(run, "", code_digest="of old code") if one == old else run for one, run in enumerate(runs)]
        assert state_of(cell, *mixed)[0] == "stale"
    failed = a_run(cell.final(DECIDED), "FAILED", stop_reason="out-of-memory")
    for later in ([], [failed]):
        state, reason = state_of(cell, a_run(cell.tune, code_digest="of old code"), *later)
        assert state == "stale" and reason.startswith("the code changed: digest of old c")
    then = runs[0].tags["mgmrn.code_digest"]
    monkeypatch.setattr(plan_module, "code_digest", lambda: "0123456789abcdef")
    (planned,) = plan_of([cell], *runs)
    assert (planned.state, planned.reason) == ("stale", f"the code changed: digest {then[:8]}, now 01234567")
    assert planned.evaluated == runs[1], "its score is still shown"
    assert planned.cost == Cost(20, 0), "both runs would be repeated"


def test_other_versions_make_a_cell_stale(cell: GridCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.cell.numerics", lambda _: "python 3.11, torch 2.0, numpy 2.0")
    runs = both(cell)
    monkeypatch.setattr(plan_module, "numerics", lambda _: "python 3.12, torch 2.9, numpy 2.0")
    reason = "the environment changed: python 3.11, torch 2.0 then, python 3.12, torch 2.9 now"
    assert state_of(cell, *runs) == ("stale", reason)
    for tag in ("mgmrn.code_digest", "mgmrn.numerics"):
        old = [without(run, tag) for run in runs]
        assert state_of(cell, *old) == ("stale", "was made before runs recorded their code")


def test_other_data_make_a_cell_stale(folder: Path, cell: GridCell) -> None:
    (now, _) = cells_of(write_grid(folder), folder / "changed")
    then, digest = cell.tune.data.digest, now.tune.data.digest
    (planned,) = plan_of([now], *both(cell))
    assert (planned.state, planned.reason) == ("stale", f"the data changed: digest {then[:8]}, now {digest[:8]}")
    assert planned.evaluated is None, "figures on other data are not shown"
    assert state_of(now, *both(cell), *both(now)) == ("cached", "")
    assert state_of(now, *both(cell), a_run(now.tune)) == ("new", TUNED), "it was begun on the present data"
    assert state_of(now, *both(cell), a_run(now.tune, "KILLED"))[0] == "new"


def test_a_run_that_failed_is_not_repeated_and_one_that_was_cut_off_goes_on(cell: GridCell) -> None:
    for reason in ("out-of-memory", "non-finite-loss", "bad-input"):
        tune, final = (a_run(one, "FAILED", stop_reason=reason) for one in (cell.tune, cell.final(DECIDED)))
        assert state_of(cell, tune) == state_of(cell, a_run(cell.tune), final) == ("failed", reason)
    for status, reason in (("FAILED", "workers-lost"), ("KILLED", "interrupted"), ("RUNNING", None)):
        more = {"driver": DEAD_DRIVER} | ({"stop_reason": reason} if reason else {})
        tune, final = (a_run(one, status, seconds=None, **more) for one in (cell.tune, cell.final(DECIDED)))
        assert state_of(cell, tune) == state_of(cell, a_run(cell.tune), final) == GOES_ON, status
        state, said = state_of(cell, a_run(cell.tune, status, code_digest="of old code", **more))
        assert state == "stale" and said.startswith("was cut off, and the code changed: digest of old c")


def test_a_run_that_was_cut_off_in_another_experiment_is_left_there(cell: GridCell) -> None:
    """The checkpoints of `train` or of another grid cannot be used."""
    elsewhere = replace(a_run(cell.tune, "KILLED", code_digest="of old code"), experiment_id="2")
    assert state_of(cell, elsewhere) == ("new", "")
    own = a_run(cell.tune, "KILLED")
    assert state_of(cell, own, elsewhere) == GOES_ON
    failed = replace(a_run(cell.tune, "FAILED", stop_reason="out-of-memory"), experiment_id="2")
    assert state_of(cell, own, failed) == ("failed", "out-of-memory")


def test_a_run_of_a_living_driver_is_running(cell: GridCell) -> None:
    running = a_run(cell.tune, "RUNNING", seconds=None, driver=driver_tag())
    assert state_of(cell, running) == ("running", f"tune run {running.run_id}")
    running = a_run(cell.final(DECIDED), "RUNNING", seconds=None, driver="another-host:1:1.0")
    assert state_of(cell, a_run(cell.tune), running) == ("running", f"final run {running.run_id}")


def test_a_benchmark_that_is_not_at_hand_is_missing_and_costs_nothing(folder: Path) -> None:
    text = f"benchmarks: [{folder}/small.yaml, sun]\n" + SMOOTH
    cells = make_cells(make_grid(write_grid(folder, text, "two")), folder / "data")
    planned = plan_of(cells, *both(next(cell for cell in cells if cell.tune)))
    assert [(one.cell.benchmark, one.state) for one in planned] == [
        ("TINY", "cached"), ("SUN", "missing"), ("TINY", "new"), ("SUN", "missing"),
    ]  # fmt: skip
    assert "SUN does not exist" in planned[1].reason
    missing = planned[1].to_json()
    assert (missing["config_hash"], missing["run_id"], missing["predicted_hours"]) == (None, None, None)
    assert total_cost(planned) == Cost(20, 0)


def test_a_cost_is_the_median_of_runs_of_the_same_shape_and_counted_once(folder: Path, cells: list[GridCell]) -> None:
    base, smooth = cells
    longer, _ = cells_of(write_grid(folder, "fixed: {schedule.epochs: 9}\n" + SMOOTH, "longer"), folder / "data")
    runs = [a_run(base.tune, seconds=seconds, gpu_seconds=str(seconds / 2)) for seconds in (10, 90, 20)]
    finals = [a_run(base.final(DECIDED), seconds=seconds) for seconds in (5, 7)]
    costs = [planned.cost for planned in plan_of([smooth, longer], *runs, *finals)]
    assert costs == [Cost(20 + 6, 10 + 0), None], "only the loss is another one, and the length"
    unfinished = a_run(base.tune, "FAILED", stop_reason="workers-lost")
    endless = a_run(base.tune, "RUNNING", seconds=None, driver=driver_tag())
    for more in ([], [unfinished], [endless]):
        assert plan_of([base], *finals, *more)[0].cost is None
    (alike,) = plan_of([smooth], *both(base))
    other_name = replace(alike, cell=replace(smooth, variant="other"))
    assert total_cost([]) == Cost(0, 0)
    assert total_cost([alike, other_name]) == Cost(20, 0)
    assert total_cost([alike, *plan_of([longer])]) is None, "one cost is unknown"


def shown(planned: list[PlannedCell], concurrency: int = 1) -> list[str]:
    out = io.StringIO()
    show_plan(planned, Console(out=out), concurrency)
    return out.getvalue().splitlines()


def test_a_plan_is_shown_with_states_costs_and_their_total(cells: list[GridCell]) -> None:
    runs = both(cells[0], seconds=1800, gpu_seconds="900")
    lines = shown(plan_of(cells, *runs))
    assert lines[0].split() == ["benchmark", "variant", "seed", "state", "predicted", "run", "reason"]
    assert lines[1].split() == ["TINY", "base", "0", "cached", "–", runs[1].run_id]
    assert lines[2].split()[3:] == ["new", "1", "h", "00", "min,", "0.50", "GPU", "hours", "–"]
    rest = "2 cells: 1 cached, 1 new; the rest would take"
    assert lines[3] == f"{rest} 1 h 00 min, 0.50 GPU hours, one run at a time"
    assert shown(plan_of(cells, *runs), 4)[-1] == f"{rest} 15 min 00 s, 0.50 GPU hours, 4 runs at a time"
    assert shown(plan_of(cells))[-1] == "2 cells: 2 new; the rest would take an unknown time"
    assert shown(plan_of(cells, *runs, *both(cells[1])))[-1] == "2 cells: 2 cached"
    answer = plan_to_json(plan_of(cells, *runs))
    assert answer["totals"] == {"cached": 1, "new": 1}
    assert (answer["predicted_hours"], answer["predicted_gpu_hours"]) == (1.0, 0.5)
    assert answer["cells"][0] == {
        "benchmark": "TINY", "variant": "base", "seed": 0, "config_hash": cells[0].tune.config_hash,
        "state": "cached", "reason": "", "run_id": runs[1].run_id, "predicted_gpu_hours": 0.0, "predicted_hours": 0.0,
    }  # fmt: skip
    assert plan_to_json(plan_of(cells))["predicted_hours"] is None


def test_a_part_of_a_gpu_is_proposed_by_the_largest_measured_peak(cells: list[GridCell]) -> None:
    def measured(peak: float, gpu: float) -> list[TrackedRun]:
        metrics = {"perf/peak_mem_mb": 1024 * peak, "perf/gpu_mem_mb": 1024 * gpu}
        return [replace(run, metrics={**run.metrics, **metrics}) for run in both(cells[0])]

    tune, _ = measured(0.5, 80)
    left = plan_of(cells[1:], tune, measured(0.9, 80)[1])
    sentence = "0.125 GPU a run would fit (peak 0.9 GiB of 80); add --gpus-per-worker 0.125"
    assert proposed_part(left) == sentence
    again = plan_of(cells[1:], *measured(0.4, 141), *measured(0.9, 80), *both(cells[0]))
    assert proposed_part(again) == sentence, "runs on CPUs do not count"
    assert proposed_part(plan_of(cells[1:], *measured(60, 80))) == "", "a whole one"
    assert proposed_part(plan_of(cells[1:], *both(cells[0]))) == "", "runs on CPUs alone"
    assert proposed_part(plan_of(cells[1:], tune)) == "", "no final run was measured"
    assert proposed_part([]) == ""


def test_plan_reads_runs_of_train_and_of_grids(folder: Path, tables: Path, cells: list[GridCell], asked: Any) -> None:
    shutil.copy(tables, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    base, smooth = cells
    by_train = TrackingStore.connect(uri)
    run_in(by_train, by_train.create_parent("launch", {}), base.tune, 0.5)
    final = run_in(by_train, by_train.create_parent("launch", {}), base.final(DECIDED), 0.5)
    for experiment, cell in (("ablation/other", smooth.tune), ("search/x", smooth.final(DECIDED))):
        store = TrackingStore.connect(uri, f"mgmrn/{experiment}")
        run_in(store, store.create_parent("parent", {}), cell, 0.5)
    where = ["--tracking-uri", uri, "--data-root", folder / "data"]
    code, said, err = asked("plan", folder / "grid.yaml", *where)
    found = [(one["variant"], one["state"], one["reason"], one["run_id"]) for one in said["cells"]]
    assert (code, found) == (0, [("base", "cached", "", final), ("smooth", "new", TUNED, None)])
    assert "2 cells: 1 cached, 1 new" in err
    assert by_train.runs_of(["mgmrn/ablation/grid"], "") == []


def test_what_a_plan_reads_depends_on_its_cells_and_not_on_the_runs_that_are_stored(
    folder: Path, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tables, tmp_path / "mlflow.db")
    store, by_train = (
        TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db", name)
        for name in ("mgmrn/ablation/grid", "mgmrn/train")
    )
    file = write_grid(tmp_path, "seeds: [0, 1, 2]\n" + SMOOTH)
    survey = Survey(make_grid(file), store, tuple(cells_of(file, folder / "data")))
    base, new = survey.cells[:3], survey.cells[3:]
    search, read = store.client.search_runs, list[int]()

    def counted(*places: Any, **named: Any) -> Any:
        page = search(*places, **named)
        read.append(len(page))
        return page

    def runs_read() -> list[int]:
        """Number of runs in the answer to each search of a plan of all cells."""
        read.clear()
        assert [one.state for one in survey.plan()] == ["cached"] * 3 + ["new"] * 3
        return list(read)

    def add_others(numbers: range) -> None:
        """Add runs of other configs, of the shape of the cells and under their names."""
        for number in numbers:
            hashes = {f"{kind}_hash": f"other {number}" for kind in ("config", "group", "science")}
            for one in (base[0].tune, new[0].final(DECIDED)):
                run_in(by_train if number % 2 else store, parent, one, 0.5, **hashes)

    monkeypatch.setattr(store.client, "search_runs", counted)
    monkeypatch.setattr(known_module, "MOST_COSTS", 2)
    parent = store.create_parent("launch", {})
    for cell in base:
        run_in(by_train, parent, cell.tune, 0.5)
        run_in(by_train, parent, cell.final(DECIDED), 0.5)
    add_others(range(2))
    before = runs_read()
    assert before[0] == 2 * len(base), "one search for all seeds and both splits of a config"
    assert len(before) == 1 + 1 + 2 + 2, "base; smooth; no other data, no other schema; the time of tune and of final"
    add_others(range(2, 8))
    assert runs_read() == before
    assert replace(survey, cells=base).plan() and read[len(before) :] == before[:1], "cached cells need no more"
