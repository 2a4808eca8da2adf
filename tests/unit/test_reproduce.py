"""`reproduce` without training: what is read of a run, refusals, and the comparison of two runs."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.models import reproduce as module
from pipeline.models.reproduce import Record, changes, compare_histories, inexact, read_record
from pipeline.spool import Spool
from pipeline.tracking.artifacts import write_config
from pipeline.tracking.environment import ENVIRONMENT_TAG, write_environment
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.placement import Host
from tests.finished_grid import SCORES, FinishedGrid
from tests.grids import DECIDED, run_in

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("was", "now", "exact", "near"),
    [
        ({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25}, "equal", "equal"),
        ({1: NAN, 2: INF}, {1: NAN, 2: INF}, "equal", "equal"),
        ({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.2500000001}, "differs", "within tolerance"),
        ({1: 0.5}, {1: 0.6}, "differs", "differs"),
        ({1: 0.5}, {1: NAN}, "differs", "differs"),
        ({1: 20.0}, {1: 20.9}, "differs", "within tolerance"),
        ({1: 0.5}, {}, "missing", "missing"),
    ],
)
def test_a_figure_is_equal_near_or_neither(was: dict[int, float], now: dict[int, float], exact: str, near: str) -> None:
    (bitwise,) = compare_histories({"val/ausuc": was}, {"val/ausuc": now}, None)
    loss, figure = compare_histories(*({"val/ausuc": one, "train/loss": one} for one in (was, now)), 0.05)
    judged = "equal" if near == "equal" else "not judged"
    assert (bitwise.verdict, figure.verdict, loss.verdict) == (exact, near, judged)


@dataclass(frozen=True)
class Place:
    folder: Path
    store: TrackingStore
    cell: Cell
    run_id: str
    data_root: Path

    def record(self, **changed: str) -> Record:
        found = read_record(self.store, self.store.get(self.run_id), self.data_root)
        tags = dict(found.run.tags) | {f"mgmrn.{key}": value for key, value in changed.items()}
        return replace(found, run=replace(found.run, tags=tags))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, finished_grid: FinishedGrid) -> Place:
    """A final run of a grid with its config and environment."""
    folder = tmp_path_factory.mktemp("reproduce")
    grid = finished_grid.copied_to(folder)
    cell, run_id = grid.cells["smooth"][1].final(DECIDED), grid.runs["smooth"][1]
    write_config(folder / "artifacts", cell.composed)
    grid.store.log_artifacts(run_id, folder / "artifacts")
    grid.store.set_tags(run_id, {ENVIRONMENT_TAG: write_environment(folder / "launch")})
    launch = grid.store.get(run_id).parent_run_id
    assert launch is not None
    grid.store.log_artifacts(launch, folder / "launch")
    return Place(folder, grid.store, cell, run_id, grid.folder / "data")


def test_a_run_is_rebuilt_from_what_it_left(place: Place) -> None:
    found = place.record()
    cell = found.cell(place.data_root)
    assert (cell.identity, cell.name, cell.calibration) == (place.cell.identity, place.cell.name, DECIDED)
    assert cell.config == place.cell.config
    assert (found.workers.least, found.cpus_per_worker, found.gpus_per_worker) == (1, 1, 0)
    assert changes(found, cell) == []
    assert inexact(found, 1, 0) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"code_digest": "other", "code_sha": "a" * 40}, r"the code is not the one of the run \(commit aaaaaaaaaaaa\)"),
        (
            {"code_digest": "other", "code_dirty": "true"},
            r"with the uncommitted changes in env/\w+/git.diff of its launch",
        ),
        ({"data_digest": "1234"}, r"the data set is another one .*was 1234"),
        ({"config_hash": "1234"}, "the pretrained weights, or what config fields mean"),
    ],
)
def test_changes_since_the_run(changed: dict[str, str], sentence: str, place: Place) -> None:
    (found,) = changes(place.record(**changed), place.cell)
    assert re.search(sentence, found)


def test_reasons_for_other_bits(place: Place) -> None:
    for changed, placed, sentence in (
        ({"numerics": "python 2.7"}, (1, 0), "were python 2.7"),
        ({}, (2, 0), "a worker has 2 CPUs and 0 GPUs"),
        ({"gpus_per_worker": "1"}, (1, 1), "GPUs add up in an order of their own"),
        ({"world_size": "1..3"}, (1, 0), "the number of workers may change"),
    ):
        (found,) = inexact(place.record(**changed), *placed)
        assert sentence in found
    (machine,) = inexact(replace(place.record(), machine="abacus"), 1, 0)
    assert machine.endswith("was abacus")


@pytest.fixture
def ask(place: Place, asked: Any) -> Any:
    options = ("--tracking-uri", place.store.uri, "--data-root", place.data_root, "--storage", place.folder)
    return lambda *words: asked("reproduce", *words, *options)[:2]


def test_other_data_missing_pictures_and_launches_are_refused_before_anything_starts(place: Place, ask: Any) -> None:
    code, said = ask(place.run_id)
    assert code == 2 and "pictures are not there" in said["error"]
    code, said = ask(place.store.create_parent("launch", {}))
    assert code == 2 and "is no finished training run" in said["error"]
    place.store.set_tags(place.run_id, {"mgmrn.data_digest": "1234"})
    code, said = ask(place.cell.name)
    place.store.set_tags(place.run_id, {"mgmrn.data_digest": place.cell.data.digest})
    assert code == 2 and "cannot be reproduced: the data set is another one" in said["error"]
    assert "--anyway" in said["hint"]


@pytest.fixture
def rerun(place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """Replace Ray and training; `score` is the result of the run, which fails if it is None."""
    now: dict[str, float | None] = {"score": SCORES["smooth"][1]}

    def run_list(director: ListDirector) -> None:
        (task,), opening = director.waiting, director.site.opening
        cell = task.first
        director.summaries[cell.identity] = cell.summary("", "failed" if now["score"] is None else "finished")
        if now["score"] is not None:
            run_id = run_in(opening.store, opening.parent.run_id, cell, now["score"])
            opening.store.set_tags(run_id, opening.tags)
            Spool(opening.spec(cell).run_folder).assign(run_id, opening.store.identity)

    monkeypatch.setattr("pipeline.trials.list_director.run_list", run_list)
    monkeypatch.setattr(module, "launch_session", lambda where, workers, data: nullcontext((Host(1, 0),)))
    return now


def test_the_same_figures_are_reproduced(rerun: dict[str, float | None], place: Place, ask: Any) -> None:
    code, said = ask(place.cell.name)
    keys = ["run_id", "name", "reproduction_run_id", "comparison", "remarks", "metrics", "verdict"]
    assert list(said) == keys, "scripts read these keys"
    assert list(said["metrics"][0]) == ["metric", "was", "now", "difference", "verdict"]
    assert (code, said["verdict"], said["comparison"], said["remarks"]) == (0, "equal", "bitwise", [])
    assert {one["metric"] for one in said["metrics"]} >= {"test/gzsl_h", "test/zsl_t1"}
    again = place.store.get(said["reproduction_run_id"])
    assert (again.tags["mgmrn.reproduces"], again.tags["mgmrn.reproduction"]) == (place.run_id, "equal")
    assert again.experiment_id != place.store.experiment_id


@pytest.mark.parametrize(
    ("score", "versions", "outcome"),
    [
        (0.7000000000000001, None, (1, "differs", "bitwise")),
        (0.71, "python 4", (0, "within tolerance", "tolerance")),
        (0.73, "python 4", (1, "differs", "tolerance")),
        (None, None, (1, "failed", "bitwise")),
    ],
)
def test_other_bits_differ_and_other_versions_get_a_tolerance(score, versions, outcome, rerun, place, monkeypatch, ask):
    rerun["score"] = score
    if versions:
        monkeypatch.setattr(module, "numerics", lambda _: versions)
    code, said = ask(place.run_id)
    assert (code, said["verdict"], said["comparison"]) == outcome
    assert (said["reproduction_run_id"] is None) is (score is None)
    if versions:
        assert said["remarks"][0].startswith("the versions are python 4, were python 3")


def test_other_code_needs_the_option_anyway(rerun: Any, place: Place, monkeypatch: Any, ask: Any) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: "other")
    code, said = ask(place.run_id)
    assert code == 2 and "git worktree add" in said["hint"]
    code, said = ask(place.run_id, "--anyway")
    assert (code, said["verdict"], said["comparison"]) == (0, "equal", "tolerance")
