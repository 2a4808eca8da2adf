"""`reproduce`: what is read of a run, when it is refused, and how two runs are compared; nothing is trained."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import main
from pipeline.models import reproduce as module
from pipeline.models.reproduce import Record, changes, compare_histories, inexact, overall, read_record
from pipeline.tracking.artifacts import write_provenance
from pipeline.tracking.environment import GitState, environment
from pipeline.tracking.history import histories
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.train.placement import Host
from pipeline.train.request import RunSummary
from pipeline.train.spec import RunSpec
from pipeline.train.tracked import Opening, summarise
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

NAN, INF = float("nan"), float("inf")


def verdicts(was: dict[str, dict[int, float]], now: dict[str, dict[int, float]], tolerance: float | None) -> list[str]:
    return [one.verdict for one in compare_histories(was, now, tolerance)]


@pytest.mark.parametrize(
    ("was", "now", "exact", "near"),
    [
        ({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25}, "equal", "equal"),
        ({1: NAN, 2: INF}, {1: NAN, 2: INF}, "equal", "equal"),
        ({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.2500000001}, "differs", "within tolerance"),
        ({1: 0.5, 2: 0.25}, {1: 0.9, 2: 0.25}, "differs", "within tolerance"),
        ({1: 0.5}, {1: 0.6}, "differs", "differs"),
        ({1: 0.5}, {1: NAN}, "differs", "differs"),
        ({1: 20.0}, {1: 20.9}, "differs", "within tolerance"),
        ({1: 0.5, 2: 0.5}, {1: 0.5}, "missing", "within tolerance"),
        ({1: 0.5}, {}, "missing", "missing"),
    ],
)
def test_a_figure_is_equal_near_or_neither(was: dict[int, float], now: dict[int, float], exact: str, near: str) -> None:
    assert verdicts({"val/ausuc": was}, {"val/ausuc": now}, None) == [exact]
    assert verdicts({"val/ausuc": was}, {"val/ausuc": now}, 0.05) == [near]
    loss = ["equal"] if near == "equal" else ["not judged"]
    assert verdicts({"train/loss": was}, {"train/loss": now}, 0.05) == loss


def test_the_worst_figure_decides() -> None:
    both = {"train/loss": {1: 1.0}, "val/x": {1: 0.5}}
    assert overall(compare_histories(both, both, None)) == "equal"
    near = both | {"val/x": {1: 0.51}}
    assert overall(compare_histories(both, near, 0.02)) == "within tolerance"
    assert overall(compare_histories(both, near, 0.001)) == "differs"
    assert overall(compare_histories(both, {"train/loss": {1: 1.0}}, 0.02)) == "differs"
    assert overall([]) == "differs", "nothing was compared"
    (one,) = compare_histories({"val/x": {1: 0.5, 2: 0.25}}, {"val/x": {1: 0.9, 2: 0.25}}, 0.05)
    assert (one.was, one.now, one.difference) == (0.25, 0.25, pytest.approx(0.4)), "the largest of all steps"


@dataclass(frozen=True)
class Place:
    folder: Path
    store: TrackingStore
    cell: Cell
    run_id: str

    @property
    def data_root(self) -> Path:
        return self.folder / "data"

    def record(self, **changed: str) -> Record:
        found = read_record(self.store, self.store.get(self.run_id))
        tags = dict(found.run.tags) | {f"mgmrn.{key}": value for key, value in changed.items()}
        return replace(found, run=replace(found.run, tags=tags))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Place:
    """A final run as a grid would have left it."""
    folder = tmp_path_factory.mktemp("reproduce")
    shutil.copy(tables, folder / "mlflow.db")
    write_data(folder / "data")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    grid = write_grid(folder, "seeds: [3]\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n")
    (cell,) = [one.final(DECIDED) for one in cells_of(grid, folder / "data") if one.variant == "smooth"]
    run_id = run_in(store, store.create_parent("launch", {}), cell, 0.5)
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    write_provenance(artifacts, cell.composed, environment(), GitState("none", False, "", ()))
    store.log_artifacts(run_id, artifacts)
    return Place(folder, store, cell, run_id)


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
        ({"code_digest": "other", "code_dirty": "true"}, "with the uncommitted changes in its env/git.diff"),
        ({"data_digest": "1234"}, r"the data set is another one .*was 1234"),
        ({"config_hash": "1234"}, "the pretrained weights, or what config fields mean"),
    ],
)
def test_what_makes_it_another_run(changed: dict[str, str], sentence: str, place: Place) -> None:
    (found,) = changes(place.record(**changed), place.cell)
    assert re.search(sentence, found)


@pytest.mark.parametrize(
    ("changed", "placed", "sentence"),
    [
        ({"numerics": "python 2.7"}, (1, 0), "were python 2.7"),
        ({}, (2, 0), "a worker has 2 CPUs and 0 GPUs"),
        ({"gpus_per_worker": "1"}, (1, 1), "GPUs add up in an order of their own"),
        ({"world_size": "1..3"}, (1, 0), "the number of workers may change"),
    ],
)
def test_what_may_change_bits(changed: dict[str, str], placed: tuple[int, int], sentence: str, place: Place) -> None:
    (found,) = inexact(place.record(**changed), *placed)
    assert sentence in found
    *_, machine = inexact(replace(place.record(), machine={"cpu": "abacus", "gpus": []}), 1, 0)
    assert machine.endswith("was abacus")


def test_values_are_read_step_by_step(place: Place) -> None:
    tracked = place.store.get(place.run_id)
    found = histories(place.store, tracked, ("test/",))
    assert found["test/gzsl_h"] == {2: tracked.metrics["test/gzsl_h"]}
    assert histories(place.store, tracked, ("val/",)) == {}


def ask(place: Place, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    options = ["--tracking-uri", place.store.uri, "--data-root", str(place.data_root), "--storage", str(place.folder)]
    code = main(["reproduce", *arguments, *options, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_other_data_missing_pictures_and_launches_are_refused_before_anything_starts(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ask(place, capsys, place.run_id)
    assert code == 2 and "pictures are not there" in said["error"]
    code, said = ask(place, capsys, place.store.create_parent("launch", {}))
    assert code == 2 and "is no finished training run" in said["error"]
    place.store.set_tags(place.run_id, {"mgmrn.data_digest": "1234"})
    code, said = ask(place, capsys, place.cell.name)
    place.store.set_tags(place.run_id, {"mgmrn.data_digest": place.cell.data.digest})
    assert code == 2 and "cannot be reproduced: the data set is another one" in said["error"]
    assert "--anyway" in said["hint"]


@pytest.fixture
def rerun(place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replaces Ray and training; its `score` is the result of the run now, and without one the run fails."""
    now = {"score": 0.5}

    def run_cell(store: TrackingStore, cell: Cell, spec: RunSpec, opening: Opening) -> tuple[RunSummary, None]:
        if not now:
            return summarise(cell, "none", "failed", None, {}), None
        run_id = run_in(store, opening.parent_run_id, cell, now["score"])
        store.set_tags(run_id, opening.tags)
        return summarise(cell, run_id, "finished", 0.25, {}), None

    monkeypatch.setattr(module, "run_cell", run_cell)
    monkeypatch.setattr(module, "ray_session", lambda address: nullcontext((Host(1, 0),)))
    monkeypatch.setattr(module, "check_images_exist", lambda images: None)
    return now


def test_the_same_figures_are_reproduced(
    rerun: dict[str, float], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ask(place, capsys, place.cell.name)
    assert list(said) == [*("run_id", "name", "reproduction_run_id", "comparison", "remarks", "metrics", "verdict")], (
        "scripts read these keys"
    )
    assert list(said["metrics"][0]) == ["metric", "was", "now", "difference", "verdict"]
    assert (code, said["verdict"], said["comparison"], said["remarks"]) == (0, "equal", "bitwise", [])
    assert {one["metric"] for one in said["metrics"]} >= {"test/gzsl_h", "test/zsl_t1"}
    again = place.store.get(said["reproduction_run_id"])
    assert again.tags["mgmrn.kind"] == "reproduction"
    assert again.tags["mgmrn.reproduces"] == place.run_id == said["run_id"]
    assert again.tags["mgmrn.reproduction"] == "equal"
    assert again.experiment_id != place.store.experiment_id
    assert again.parent_run_id is not None
    assert place.store.get(again.parent_run_id).status == "FINISHED"


@pytest.mark.parametrize(
    ("score", "versions", "code", "verdict"),
    [
        (0.5000000000000001, None, 1, "differs"),
        (0.51, "python 4", 0, "within tolerance"),
        (0.53, "python 4", 1, "differs"),
    ],
)
def test_one_other_bit_is_a_difference_and_other_versions_get_a_tolerance(
    score: float,
    versions: str | None,
    code: int,
    verdict: str,
    rerun: dict[str, float],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rerun["score"] = score
    if versions:
        monkeypatch.setattr(module, "numerics", lambda: versions)
    found, said = ask(place, capsys, place.run_id)
    assert (found, said["verdict"]) == (code, verdict)
    assert said["comparison"] == ("tolerance" if versions else "bitwise")
    if versions:
        assert said["remarks"][0].startswith("the versions are python 4, were python 3")


def test_other_code_needs_to_be_asked_for(
    rerun: dict[str, float], place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: "other")
    code, said = ask(place, capsys, place.run_id)
    assert code == 2
    assert "git worktree add" in said["hint"]
    code, said = ask(place, capsys, place.run_id, "--anyway")
    assert (code, said["verdict"], said["comparison"]) == (0, "equal", "tolerance")


def test_a_run_that_fails_is_not_reproduced(
    rerun: dict[str, float], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    rerun.clear()
    code, said = ask(place, capsys, place.run_id)
    assert (code, said["verdict"], said["reproduction_run_id"]) == (1, "failed", None)
