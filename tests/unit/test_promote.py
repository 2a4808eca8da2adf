"""`promote`: conditions of a registration, aliases, and the difference to the champion."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.paired import bootstrapped_difference
from pipeline.cli.app import main
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.registry import version_of_alias, versions
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

TEXT = "seeds: [0, 1, 2]\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n  rough: {loss.scale: 40}\n"
SCORES = {"base": (0.5, 0.6, 0.7), "smooth": (0.61, 0.7, 0.82), "rough": (0.4, 0.5)}
COMMITTED = {"code_sha": "a" * 40, "code_dirty": "false"}


@dataclass(frozen=True)
class Place:
    store: TrackingStore
    cells: dict[str, list[Cell]]
    """Variant → final cells by seed."""
    runs: dict[str, list[str]]

    def add(self, cell: Cell, score: float = 0.9, **more: Any) -> str:
        """Another run; returns its id."""
        return add(self.store, cell, score, **more)

    def ask(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main(["promote", *arguments, "--tracking-uri", self.store.uri, "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err


def add(store: TrackingStore, cell: Cell, score: float, **more: Any) -> str:
    run_id = run_in(store, store.create_parent("launch", {}), cell, score, **COMMITTED | more)
    model = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run_id)
    store.set_tags(run_id, {MODEL_TAG: f"models:/{model.model_id}"})
    return run_id


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Path:
    """A database with three variants of three, three and two final seeds."""
    folder = tmp_path_factory.mktemp("promote")
    shutil.copy(tables, folder / "mlflow.db")
    write_data(folder / "data")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    cells = final_cells(folder)
    runs = {
        variant: [add(store, cell, score) for cell, score in zip(cells[variant], scores, strict=False)]
        for variant, scores in SCORES.items()
    }
    (folder / "runs.json").write_text(json.dumps(runs))
    return folder


def final_cells(folder: Path) -> dict[str, list[Cell]]:
    cells: dict[str, list[Cell]] = {}
    for one in cells_of(write_grid(folder, TEXT), folder / "data"):
        cells.setdefault(one.variant, []).append(one.final(DECIDED))
    return cells


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")
    return Place(store, final_cells(made), json.loads((made / "runs.json").read_text()))


def test_the_first_is_a_candidate_and_then_the_champion(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = place.runs["base"][1]
    code, said, err = place.ask(capsys, run_id)
    assert code == 0, err
    assert (said["model"], said["version"], said["alias"]) == ("mgmrn-TINY", "1", "candidate")
    assert said["seeds"] == {str(seed): run for seed, run in enumerate(place.runs["base"])}
    assert "there is no champion yet" in err
    _, said, _ = place.ask(capsys, run_id, "--champion")
    assert (said["version"], said["uri"]) == ("1", "models:/mgmrn-TINY@champion")
    (version,) = versions(place.store, "mgmrn-TINY")
    assert version.aliases == ("champion",), "a champion is no candidate"
    _, said, err = place.ask(capsys, run_id)
    assert said["alias"] == "champion"
    assert "it is the champion" in err
    _, said, _ = place.ask(capsys, place.runs["base"][2])
    assert said["remark"] == "the champion, version 1, is another seed of the same config"


def test_the_difference_to_the_champion_is_paired_by_seed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.ask(capsys, place.runs["base"][0], "--champion")
    code, said, err = place.ask(capsys, place.runs["smooth"][0])
    assert code == 0
    assert list(said) == [
        *("model", "version", "alias", "uri", "run_id", "seeds", "champion_before", "remark"),
        *("comparisons", "published"),
    ], "scripts read these keys"
    assert said["champion_before"] == "1"
    first = said["comparisons"][0]
    assert first["metric"] == "gzsl_h"
    (entry,) = [one for one in first["entries"] if one["variant"] == "candidate"]
    wanted = bootstrapped_difference(SCORES["smooth"], SCORES["base"])
    found = entry["difference"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert entry["verdict"] == "better"
    assert f"{100 * wanted.low:+.1f} … {100 * wanted.high:+.1f}" in err
    champion, candidate = (version_of_alias(place.store, "mgmrn-TINY", alias) for alias in ("champion", "candidate"))
    assert champion and candidate
    assert (champion.run_id, candidate.run_id) == (place.runs["base"][0], place.runs["smooth"][0])
    place.ask(capsys, place.runs["smooth"][0], "--champion")
    assert version_of_alias(place.store, "mgmrn-TINY", "champion") == versions(place.store, "mgmrn-TINY")[0]
    assert version_of_alias(place.store, "mgmrn-TINY", "candidate") is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"code_dirty": "true"}, "its code is not committed"),
        ({"code_sha": "none"}, "its code is not committed"),
        ({"split": "tune"}, "it is not a run of the final split"),
        ({"benchmark": "CUB-standin"}, "its pictures are drawn stand-ins"),
        ({"model_uri": ""}, "it has logged no model"),
        ({"kind": "trial"}, "is no finished training run"),
    ],
)
def test_what_must_not_be_promoted(
    changed: dict[str, str], reason: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = place.runs["base"][0]
    place.store.set_tags(run_id, {f"mgmrn.{key}": value for key, value in changed.items()})
    code, said, _ = place.ask(capsys, run_id)
    assert code == 2
    assert reason in said["error"]
    assert versions(place.store, "mgmrn-TINY") == []


@pytest.mark.parametrize("changed", [{}, {"code_digest": "other"}, {"code_dirty": "true"}])
def test_two_seeds_are_too_few_and_a_seed_of_other_code_does_not_count(
    changed: dict[str, str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    if changed:
        place.store.set_tags(place.runs["base"][2], {f"mgmrn.{key}": value for key, value in changed.items()})
    code, said, _ = place.ask(capsys, place.runs["base" if changed else "rough"][0])
    assert code == 2
    assert "its config has 2 finished final seeds of committed code (0, 1), 3 are needed" in said["error"]
    assert versions(place.store, "mgmrn-TINY") == []


def test_the_latest_run_of_a_seed_counts(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    again = place.add(place.cells["base"][2])
    _, said, _ = place.ask(capsys, place.runs["base"][0])
    assert said["seeds"]["2"] == again


def test_other_data_are_not_compared(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.ask(capsys, place.runs["base"][0], "--champion")
    place.store.set_tags(place.runs["base"][0], {"mgmrn.data_digest": "other"})
    _, said, _ = place.ask(capsys, place.runs["smooth"][0])
    assert said["comparisons"] == []
    assert "was scored on other data" in said["remark"]
