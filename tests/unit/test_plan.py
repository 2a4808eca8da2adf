"""Plans: what the store knows of each cell, what has changed since, and what the rest would cost. Nothing runs, and nothing is stored."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ablation import plan as plan_module
from pipeline.ablation.cells import GridCell, make_cells
from pipeline.ablation.grid import make_grid
from pipeline.ablation.plan import PlannedCell, total_cost
from pipeline.ablation.request import RUN_BY, plan_to_json
from pipeline.cli.ablation_verbs import show_plan
from pipeline.cli.app import main
from pipeline.console import Console
from pipeline.tracking.store import TrackedRun, TrackingStore, driver_tag
from pipeline.train.spec import Calibration
from pipeline.trials.known import Cost
from tests.grids import DECIDED, SMOOTH, a_run, cells_of, plan_of, run_in, write_data, write_grid
from tests.tiny import ATTRIBUTES, WORD_LENGTH

SAID = "its tune run is done"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data in `data`, and other data of the same name in `changed`."""
    path = tmp_path_factory.mktemp("plan")
    write_data(path / "data")
    write_data(path / "changed", word_vectors=np.ones((ATTRIBUTES, WORD_LENGTH)))
    return path


@pytest.fixture
def cells(folder: Path) -> list[GridCell]:
    """base and smooth with one seed."""
    return cells_of(write_grid(folder), folder / "data")


@pytest.fixture
def cell(cells: list[GridCell]) -> GridCell:
    return cells[0]


def both(cell: GridCell, **more: Any) -> tuple[TrackedRun, TrackedRun]:
    """A finished cell."""
    return a_run(cell.tune, **more), a_run(cell.final(DECIDED), **more)


def dead_driver() -> str:
    """The tag of a driver that has ended."""
    code = "from pipeline.tracking.store import driver_tag; print(driver_tag())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def state_of(cell: GridCell, *runs: TrackedRun) -> tuple[str, str]:
    """State and reason, with the latest run named last."""
    (planned,) = plan_of([cell], *runs)
    return planned.state, planned.reason


def on_tune(folder: Path) -> GridCell:
    """A cell that is scored on validation images."""
    return cells_of(write_grid(folder, "split: tune\n" + SMOOTH, "tuned"), folder / "data")[0]


def test_a_cell_that_was_never_run_is_new(cell: GridCell) -> None:
    assert state_of(cell) == ("new", "")
    (planned,) = plan_of([cell])
    assert (planned.tune, planned.evaluated, planned.calibration, planned.cost) == (None, None, None, None)


def test_runs_of_other_variants_seeds_and_splits_say_nothing_of_a_cell(cells: list[GridCell]) -> None:
    assert state_of(cells[0], *both(cells[1])) == ("new", "")
    assert state_of(cells[0], a_run(cells[0].final(DECIDED))) == ("new", ""), "what decided γ is not known"


def test_a_cell_of_which_the_tune_run_is_done_is_new_with_what_that_decided(cell: GridCell) -> None:
    tune = a_run(cell.tune)
    (planned,) = plan_of([cell], tune)
    assert (planned.state, planned.reason) == ("new", SAID)
    assert (planned.tune, planned.evaluated, planned.calibration) == (tune, None, DECIDED)


def test_a_cell_of_which_both_runs_are_done_is_cached(cell: GridCell) -> None:
    tune, final = both(cell)
    (planned,) = plan_of([cell], tune, final)
    assert (planned.state, planned.reason, planned.tune, planned.evaluated) == ("cached", "", tune, final)
    assert planned.cost == Cost(0, 0)


def test_on_the_tune_split_the_tune_run_is_all(folder: Path) -> None:
    cell = on_tune(folder)
    assert state_of(cell) == ("new", "")
    tune = a_run(cell.tune)
    (planned,) = plan_of([cell], tune)
    assert (planned.state, planned.evaluated, planned.cost) == ("cached", tune, Cost(0, 0))


def test_a_run_of_an_older_schema_is_named(cell: GridCell) -> None:
    tune, _ = both(cell)
    old = replace(tune, tags={name: value for name, value in tune.tags.items() if name != "mgmrn.schema"})
    old = replace(old, tags={**old.tags, "mgmrn.config_hash": "of schema 1", "mgmrn.science_hash": "of schema 1"})
    assert state_of(cell, old) == ("new", "an earlier run belongs to schema 1 of the configs, now 2")


def test_the_variant_s_name_is_no_part_of_a_cell_s_identity(cell: GridCell) -> None:
    assert state_of(cell, *both(cell, variant="mgmrn", study="small")) == ("cached", "")


def test_the_latest_finished_run_counts(cell: GridCell) -> None:
    earlier, later = both(cell), both(cell)
    (planned,) = plan_of([cell], *earlier, *later)
    assert (planned.tune, planned.evaluated) == later


def test_a_run_that_is_repeated_in_vain_takes_nothing_away(cell: GridCell) -> None:
    again = a_run(cell.tune, "FAILED", stop_reason="out-of-memory")
    assert state_of(cell, *both(cell), again) == ("cached", "")


def test_a_final_run_counts_with_the_calibration_of_the_latest_tune_run_alone(cell: GridCell) -> None:
    other = Calibration(epochs=1, gamma=0.5)
    first = a_run(cell.final(other))
    assert state_of(cell, a_run(cell.tune), first) == ("new", SAID)
    second = a_run(cell.final(DECIDED))
    (planned,) = plan_of([cell], a_run(cell.tune), second, first)
    assert (planned.state, planned.evaluated) == ("cached", second)
    retuned = a_run(cell.tune, decided=other)
    (planned,) = plan_of([cell], a_run(cell.tune), first, second, retuned)
    assert (planned.evaluated, planned.calibration) == (first, other)


def test_other_code_makes_a_cell_stale(cell: GridCell, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = both(cell)
    then = runs[0].tags["mgmrn.code_digest"]
    monkeypatch.setattr(plan_module, "code_digest", lambda: "0123456789abcdef")
    (planned,) = plan_of([cell], *runs)
    assert (planned.state, planned.reason) == ("stale", f"the code changed: digest {then[:8]}, now 01234567")
    assert planned.evaluated == runs[1], "its score is still shown"
    assert planned.cost == Cost(20, 0), "both runs would be repeated"


@pytest.mark.parametrize("old", [0, 1])
def test_one_old_run_makes_a_cell_stale(cell: GridCell, old: int) -> None:
    runs = list(both(cell))
    runs[old] = replace(runs[old], tags={**runs[old].tags, "mgmrn.code_digest": "of old code"})
    assert state_of(cell, *runs)[0] == "stale"


def test_on_the_tune_split_other_code_makes_a_cell_stale_too(folder: Path) -> None:
    cell = on_tune(folder)
    (planned,) = plan_of([cell], a_run(cell.tune, code_digest="of old code"))
    assert (planned.state, planned.cost) == ("stale", Cost(10, 0))


def test_other_versions_make_a_cell_stale(cell: GridCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.cell.numerics", lambda: "python 3.11, torch 2.0, numpy 2.0")
    runs = both(cell)
    assert state_of(cell, *runs)[0] == "stale"
    monkeypatch.setattr(plan_module, "numerics", lambda: "python 3.12, torch 2.9, numpy 2.0")
    reason = "the environment changed: python 3.11, torch 2.0 then, python 3.12, torch 2.9 now"
    assert state_of(cell, *runs) == ("stale", reason)


@pytest.mark.parametrize("tag", ["mgmrn.code_digest", "mgmrn.numerics"])
def test_runs_of_before_the_code_was_recorded_are_stale(cell: GridCell, tag: str) -> None:
    runs = [replace(run, tags={name: value for name, value in run.tags.items() if name != tag}) for run in both(cell)]
    assert state_of(cell, *runs) == ("stale", "was made before runs recorded their code")


def test_other_data_make_a_cell_stale(folder: Path, cell: GridCell) -> None:
    (now, _) = cells_of(write_grid(folder), folder / "changed")
    then, digest = cell.tune.data.digest, now.tune.data.digest
    (planned,) = plan_of([now], *both(cell))
    assert (planned.state, planned.reason) == ("stale", f"the data changed: digest {then[:8]}, now {digest[:8]}")
    assert (planned.tune, planned.evaluated) == (None, None), "figures on other data are not shown"
    assert state_of(now, *both(cell), *both(now)) == ("cached", "")
    assert state_of(now, *both(cell), a_run(now.tune)) == ("new", SAID), "it was begun on the data of now"
    assert state_of(now, *both(cell), a_run(now.tune, "KILLED"))[0] == "new"


def test_what_was_tuned_with_other_code_is_not_gone_on_with(cell: GridCell) -> None:
    tune = a_run(cell.tune, code_digest="of old code")
    for later in ([], [a_run(cell.final(DECIDED), "FAILED", stop_reason="out-of-memory")]):
        (planned,) = plan_of([cell], tune, *later)
        assert planned.state == "stale" and planned.reason.startswith("the code changed: digest of old c")


@pytest.mark.parametrize("reason", ["out-of-memory", "non-finite-loss", "bad-input"])
def test_a_cell_whose_run_failed_has_failed(cell: GridCell, reason: str) -> None:
    assert state_of(cell, a_run(cell.tune, "FAILED", stop_reason=reason)) == ("failed", reason)
    final = a_run(cell.final(DECIDED), "FAILED", stop_reason=reason)
    (planned,) = plan_of([cell], a_run(cell.tune), final)
    assert (planned.state, planned.reason, planned.calibration) == ("failed", reason, DECIDED)


@pytest.mark.parametrize(
    ("status", "more"),
    [("FAILED", {"stop_reason": "workers-lost"}), ("KILLED", {"stop_reason": "interrupted"}), ("RUNNING", {})],
)
def test_a_run_that_was_cut_off_goes_on(cell: GridCell, status: str, more: dict[str, str]) -> None:
    more = more | {"driver": dead_driver()}
    goes_on = ("new", "was cut off and goes on from its checkpoint")
    assert state_of(cell, a_run(cell.tune, status, seconds=None, **more)) == goes_on
    assert state_of(cell, a_run(cell.tune), a_run(cell.final(DECIDED), status, **more)) == goes_on


def test_a_run_that_was_cut_off_does_not_go_on_with_other_code(cell: GridCell) -> None:
    state, reason = state_of(cell, a_run(cell.tune, "KILLED", code_digest="of old code"))
    assert state == "stale" and reason.startswith("was cut off, and the code changed: digest of old c")


def test_a_run_that_was_cut_off_elsewhere_is_left_there(cell: GridCell) -> None:
    """It may have been so by `train` or by another grid: its checkpoints are not at hand."""
    elsewhere = replace(a_run(cell.tune, "KILLED", code_digest="of old code"), experiment_id="2")
    assert state_of(cell, elsewhere) == ("new", "")
    own = a_run(cell.tune, "KILLED")
    assert state_of(cell, own, elsewhere) == ("new", "was cut off and goes on from its checkpoint")
    failed = replace(a_run(cell.tune, "FAILED", stop_reason="out-of-memory"), experiment_id="2")
    assert state_of(cell, own, failed) == ("failed", "out-of-memory")
    running = replace(a_run(cell.tune, "RUNNING", driver=driver_tag()), experiment_id="2")
    assert state_of(cell, own, running) == ("running", f"tune run {running.run_id}")


def test_a_run_of_a_living_driver_is_running(cell: GridCell) -> None:
    running = a_run(cell.tune, "RUNNING", seconds=None, driver=driver_tag())
    assert state_of(cell, running) == ("running", f"tune run {running.run_id}")
    running = a_run(cell.final(DECIDED), "RUNNING", seconds=None, driver="another-host:1:1.0")
    assert state_of(cell, a_run(cell.tune), running) == ("running", f"final run {running.run_id}")


def test_what_is_no_run_is_not_counted(cell: GridCell) -> None:
    assert state_of(cell, *both(cell, kind="link")) == ("new", "")


def test_a_benchmark_that_is_not_at_hand_is_missing_and_costs_nothing(folder: Path) -> None:
    text = f"benchmarks: [{folder}/small.yaml, sun]\n" + SMOOTH
    cells = make_cells(make_grid(write_grid(folder, text, "two")), folder / "data")
    runs = [run for cell in cells if isinstance(cell, GridCell) for run in both(cell)]
    planned = plan_of(cells, *runs[:2])
    assert [(one.cell.benchmark, one.state) for one in planned] == [
        ("TINY", "cached"), ("SUN", "missing"), ("TINY", "new"), ("SUN", "missing"),
    ]  # fmt: skip
    assert "SUN does not exist" in planned[1].reason
    missing = planned[1].to_json()
    assert (missing["config_hash"], missing["run_id"], missing["predicted_hours"]) == (None, None, None)
    assert total_cost(planned) == Cost(20, 0)


def test_no_mode_runs_what_is_on_or_not_at_hand() -> None:
    assert RUN_BY["missing"] == {"new"}
    assert RUN_BY["retry"] == {"new", "failed", "stale"}
    assert RUN_BY["force"] == {"new", "failed", "stale", "cached"}


def test_a_cost_is_the_median_of_runs_of_the_same_shape(cells: list[GridCell]) -> None:
    base, smooth = cells
    runs = [a_run(base.tune, seconds=seconds, gpu_seconds=str(seconds / 2)) for seconds in (10, 90, 20)]
    runs += [a_run(base.final(DECIDED), seconds=seconds) for seconds in (5, 7)]
    (planned,) = plan_of([smooth], *runs)
    assert planned.cost == Cost(20 + 6, 10 + 0), "only the loss is another one"


def test_unfinished_runs_and_other_shapes_tell_nothing_of_a_cost(folder: Path, cell: GridCell) -> None:
    finals = [a_run(cell.final(DECIDED))]
    assert plan_of([cell], *finals)[0].cost is None, "what tuning takes is unknown"
    unfinished = a_run(cell.tune, "FAILED", stop_reason="workers-lost")
    assert plan_of([cell], *finals, unfinished)[0].cost is None
    endless = a_run(cell.tune, "RUNNING", seconds=None, driver=driver_tag())
    assert plan_of([cell], *finals, endless)[0].cost is None
    longer = cells_of(write_grid(folder, "fixed: {schedule.epochs: 9}\n" + SMOOTH, "longer"), folder / "data")
    assert plan_of([longer[0]], *both(cell))[0].cost is None


def test_a_cell_that_is_tuned_costs_its_final_run(cell: GridCell) -> None:
    other = a_run(cell.final(Calibration(epochs=1, gamma=0.5)), seconds=3)
    assert plan_of([cell], a_run(cell.tune), other)[0].cost == Cost(3, 0)
    failed = a_run(cell.final(DECIDED), "FAILED", stop_reason="out-of-memory")
    assert plan_of([cell], a_run(cell.tune), other, failed)[0].cost == Cost(3, 0)
    stale = a_run(cell.tune, code_digest="of old code")
    assert plan_of([cell], stale, other)[0].cost == Cost(13, 0), "both are run again"


def test_on_the_tune_split_no_final_run_is_paid_for(folder: Path) -> None:
    cell = on_tune(folder)
    other_seed = cells_of(write_grid(folder, "split: tune\nseeds: [1]\n" + SMOOTH, "seeded"), folder / "data")[0]
    assert plan_of([cell], a_run(other_seed.tune))[0].cost == Cost(10, 0)


def test_a_total_is_unknown_where_one_cost_is(cells: list[GridCell], folder: Path) -> None:
    (alike,) = plan_of([cells[1]], *both(cells[0]))
    assert total_cost([]) == Cost(0, 0)
    longer = cells_of(write_grid(folder, "fixed: {schedule.epochs: 9}\n" + SMOOTH, "longer"), folder / "data")
    (unknown,) = plan_of([longer[0]])
    assert total_cost([alike]) == Cost(20, 0)
    assert total_cost([alike, unknown]) is None


def test_what_two_variants_share_is_paid_for_once(cells: list[GridCell]) -> None:
    (planned,) = plan_of([cells[1]], *both(cells[0]))
    other_name = replace(planned, cell=replace(cells[1], variant="other"))
    assert total_cost([planned, other_name]) == Cost(20, 0)


def shown(planned: list[PlannedCell]) -> list[str]:
    out = io.StringIO()
    show_plan(planned, Console(out=out))
    return out.getvalue().splitlines()


def test_a_plan_is_shown_with_states_costs_and_their_total(cells: list[GridCell]) -> None:
    runs = both(cells[0], seconds=30 * 60)
    lines = shown(plan_of(cells, *runs))
    assert lines[0].split() == ["benchmark", "variant", "seed", "state", "predicted", "run", "reason"]
    assert lines[1].split() == ["TINY", "base", "0", "cached", "–", runs[1].run_id]
    assert lines[2].split() == ["TINY", "smooth", "0", "new", "1", "h", "00", "min", "–"]
    assert lines[3] == "2 cells: 1 cached, 1 new; the rest would take 1 h 00 min, one run at a time"
    assert shown(plan_of(cells))[-1] == "2 cells: 2 new; the rest would take an unknown time"
    assert shown(plan_of(cells, *runs, *both(cells[1])))[-1] == "2 cells: 2 cached"


def test_a_plan_as_json(cells: list[GridCell]) -> None:
    tune, final = both(cells[0], seconds=1800, gpu_seconds="900")
    answer = plan_to_json(plan_of(cells, tune, final))
    assert answer["totals"] == {"cached": 1, "new": 1}
    assert (answer["predicted_hours"], answer["predicted_gpu_hours"]) == (1.0, 0.5)
    assert answer["cells"][0] == {
        "benchmark": "TINY", "variant": "base", "seed": 0, "config_hash": cells[0].tune.config_hash,
        "state": "cached", "reason": "", "run_id": final.run_id, "predicted_gpu_hours": 0.0, "predicted_hours": 0.0,
    }  # fmt: skip
    assert (answer["cells"][1]["run_id"], answer["cells"][1]["predicted_hours"]) == (None, 1.0)
    unknown = plan_to_json(plan_of(cells))
    assert unknown["predicted_hours"] is None and unknown["cells"][0]["predicted_gpu_hours"] is None


def test_plan_reads_the_runs_of_train_and_of_other_grids_and_starts_nothing(
    folder: Path, tables: Path, cells: list[GridCell], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tables, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    base, smooth = cells
    by_train = TrackingStore.connect(uri)
    run_in(by_train, by_train.create_parent("launch", {}), base.tune, 0.5)
    final = run_in(by_train, by_train.create_parent("launch", {}), base.final(DECIDED), 0.5)
    other_grid = TrackingStore.connect(uri, "mgmrn/ablation/other")
    run_in(other_grid, other_grid.create_parent("ablation", {}), smooth.tune, 0.5)
    search = TrackingStore.connect(uri, "mgmrn/search/x")
    run_in(search, search.create_parent("search", {}), smooth.final(DECIDED), 0.5)
    where = ["--tracking-uri", uri, "--data-root", str(folder / "data"), "--json"]
    assert main(["plan", str(folder / "grid.yaml"), *where]) == 0
    said = capsys.readouterr()
    found = [(one["variant"], one["state"], one["reason"], one["run_id"]) for one in json.loads(said.out)["cells"]]
    assert found == [("base", "cached", "", final), ("smooth", "new", SAID, None)]
    assert "2 cells: 1 cached, 1 new" in said.err
    assert by_train.runs_of(["mgmrn/ablation/grid"], "") == []
