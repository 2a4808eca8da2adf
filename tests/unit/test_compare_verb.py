"""`compare`: of a grid as far as it is there, or of single runs; every form that it prints has the figures of the runs that it cites."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mgmrn.errors import UserError
from pipeline.ablation.cells import GridCell
from pipeline.ablation.compare import compare_grid, compare_runs
from pipeline.ablation.request import AblationRequest
from pipeline.analysis.scores import FIGURES
from pipeline.cli.app import main
from pipeline.errors import TrackingError
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.where import Where
from tests.grids import DECIDED, cells_of, run_in, tags_of, write_data, write_grid
from tests.runs import create_child

BASE = (0.5, 0.6, 0.7)
SMOOTH = (0.61, 0.7, 0.82)
TEXT = (
    "benchmarks: [{small}, sun]\nseeds: [0, 1, 2]\nprimary: ausuc\n"
    "variants:\n  smooth: {{loss.label_smoothing: 0.1}}\n  rough: {{loss.scale: 40}}\n"
)


@dataclass(frozen=True)
class Place:
    """A grid of which base and smooth are run on TINY, rough with one seed, and nothing on SUN."""

    folder: Path
    store: TrackingStore
    runs: dict[str, list[str]]
    """Variant → ids of its final runs."""
    cells: dict[str, list[GridCell]]

    @property
    def options(self) -> list[str]:
        return ["--tracking-uri", self.store.uri, "--data-root", str(self.folder / "data")]

    @property
    def grid(self) -> list[str]:
        return [str(self.folder / "grid.yaml"), *self.options]

    def request(self) -> AblationRequest:
        file = write_grid(self.folder, TEXT.format(small=self.folder / "small.yaml"))
        folder = self.folder
        return AblationRequest(file, Where(self.store.uri, folder / "data", folder / "runs"))

    def compared(self, *run_ids: str, base: str | None = None) -> list[Any]:
        return list(compare_runs(run_ids, base, "gzsl_h", self.store.uri)[0].entries)

    def add(self, cell: Cell, score: float, **more: Any) -> str:
        """Another finished run, in an experiment where grids do not look for theirs; returns its id."""
        store = TrackingStore.connect(self.store.uri, "mgmrn/others")
        return run_in(store, store.create_parent("launch", {}), cell, score, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Place:
    folder = tmp_path_factory.mktemp("compare")
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    write_data(folder / "data")
    file = write_grid(folder, TEXT.format(small=folder / "small.yaml"))
    parent = store.create_parent("launch", {})
    runs: dict[str, list[str]] = {}
    cells: dict[str, list[GridCell]] = {}
    for cell in cells_of(file, folder / "data"):
        cells.setdefault(cell.variant, []).append(cell)
        score = {"base": BASE, "smooth": SMOOTH, "rough": (0.4,)}[cell.variant][cell.seed :]
        if score:
            run_in(store, parent, cell.tune, 0.9)
            runs.setdefault(cell.variant, []).append(run_in(store, parent, cell.final(DECIDED), score[0]))
    return Place(folder, store, runs, cells)


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Standard output of a command that must succeed."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


def test_a_grid_is_compared_by_all_figures_the_primary_one_first(place: Place) -> None:
    compared = compare_grid(place.request(), None)
    assert [one.metric for one in compared] == ["ausuc", *(key for key in FIGURES if key != "ausuc")]
    assert {(one.base, one.split, one.variants, one.benchmarks) for one in compared} == {
        ("base", "final", ("base", "smooth", "rough"), ("TINY", "SUN"))
    }


def test_one_figure_alone(place: Place) -> None:
    (comparison,) = compare_grid(place.request(), "gzsl_h")
    smooth, rough = comparison.entry("smooth", "TINY"), comparison.entry("rough", "TINY")
    shift = list(FIGURES).index("gzsl_h") / 100
    assert smooth.summary is not None and smooth.difference is not None
    assert smooth.summary.mean == pytest.approx(sum(SMOOTH) / 3 + shift)
    assert (smooth.difference.mean, smooth.difference.n) == (pytest.approx(0.11), 3)
    assert [card.run_id for card in smooth.cards] == place.runs["smooth"], "test images count, not validation images"
    assert (rough.verdict, [card.state for card in rough.cards]) == ("insufficient seeds", ["cached", "new", "new"])


def test_a_benchmark_that_is_not_at_hand_stays_in_the_comparison(place: Place) -> None:
    for entry in compare_grid(place.request(), "gzsl_h")[0].entries:
        if entry.benchmark == "SUN":
            assert {card.state for card in entry.cards} == {"missing"}
            assert entry.summary is None and len(entry.cards) == 3


def test_a_figure_that_there_is_not(place: Place) -> None:
    for ask in (lambda: compare_grid(place.request(), "h"), lambda: compare_runs(["x"], None, "h", place.store.uri)):
        with pytest.raises(UserError, match="'h' is no figure") as caught:
            ask()
        assert caught.value.where == "--metric" and "gzsl_h" in caught.value.hint


def test_runs_are_compared_by_variant_and_paired_by_seed(place: Place) -> None:
    entries = place.compared(*place.runs["smooth"][::-1], *place.runs["base"])
    assert [(one.variant, one.verdict) for one in entries] == [("smooth", "base"), ("base", "worse")]
    assert entries[1].difference.n == 3
    assert entries[1].difference.mean == pytest.approx(-0.11)
    assert [card.seed for card in entries[0].cards] == [0, 1, 2]


def test_the_base_among_runs_can_be_named(place: Place) -> None:
    runs = [*place.runs["rough"], *place.runs["smooth"], *place.runs["base"]]
    entries = place.compared(*runs, base="base")
    assert [one.variant for one in entries] == ["base", "rough", "smooth"]
    with pytest.raises(UserError, match="no run is of the variant 'full'") as caught:
        place.compared(*runs, base="full")
    assert (caught.value.where, caught.value.hint) == ("--base", "name one of rough, smooth, base")


def test_configs_that_go_by_one_name_are_told_apart(place: Place) -> None:
    """As two calls of `train` with other overrides are."""
    cells = [place.cells["base"][0], place.cells["smooth"][0]]
    runs = [place.add(cell.final(DECIDED), 0.5, variant="mgmrn") for cell in cells]
    entries = place.compared(*runs)
    assert [one.variant for one in entries] == [f"mgmrn.{cell.tune.group_hash[:8]}" for cell in cells]
    seeds = [place.add(cell.final(DECIDED), 0.5, variant="mgmrn") for cell in place.cells["base"][1:]]
    assert [one.variant for one in place.compared(runs[0], *seeds)] == ["mgmrn"], "seeds alone make no other config"


def test_two_runs_of_one_config_and_seed_are_refused(place: Place) -> None:
    first, again = place.runs["base"][0], place.add(place.cells["base"][0].final(DECIDED), 0.5)
    with pytest.raises(UserError, match=f"{first} and {again} are both of base on TINY with seed 0"):
        place.compared(first, again)
    with pytest.raises(UserError, match=f"{first} and {first} are both of"):
        place.compared(first, first)


def test_runs_on_drawn_pictures_are_of_another_benchmark(place: Place) -> None:
    drawn = place.add(place.cells["base"][0].final(DECIDED), 0.5, standin="true")
    entries = place.compared(place.runs["base"][0], drawn)
    assert [one.benchmark for one in entries] == ["TINY", "TINY-standin"]


def test_runs_that_are_not_finished_or_stand_for_something_else_are_refused(place: Place) -> None:
    parent = place.store.create_parent("launch", {"mgmrn.kind": "launch"})
    cell = place.cells["base"][0].final(DECIDED)
    unfinished = create_child(place.store, parent, cell.name, tags_of(cell), cell.config)
    link = place.store.create_link(parent, cell.name, tags_of(cell, kind="link"))
    place.store.finish(link, "FINISHED", "linked")
    for run_id in (parent, unfinished, link):
        with pytest.raises(UserError, match=f"{run_id} is no finished training run"):
            place.compared(place.runs["base"][0], run_id)


def test_runs_on_validation_and_on_test_images_are_not_compared(place: Place) -> None:
    tune = place.add(place.cells["smooth"][0].tune, 0.5)
    with pytest.raises(UserError, match="some runs are scored on validation images and some on test images"):
        place.compared(place.runs["base"][0], tune)
    (alone,) = compare_runs([tune], None, "gzsl_h", place.store.uri)
    assert alone.split == "tune" and alone.entries[0].summary is not None


def test_a_run_that_the_store_does_not_know(place: Place) -> None:
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        compare_runs(["0123456789abcdef" * 2], None, None, place.store.uri)


def test_csv_has_full_precision_and_cites_the_runs(place: Place, answer: Callable[..., str]) -> None:
    rows = list(csv.DictReader(io.StringIO(answer("compare", *place.grid, "--csv"))))
    assert len(rows) == len(FIGURES) * 6
    (smooth,) = [
        row for row in rows if (row["metric"], row["variant"], row["benchmark"]) == ("zsl_t1", "smooth", "TINY")
    ]
    assert float(smooth["mean"]) == pytest.approx(sum(SMOOTH) / 3, rel=1e-15)
    assert smooth["run_ids"].split() == place.runs["smooth"]
    assert (smooth["n"], smooth["pairs"], smooth["split"], smooth["verdict"]) == ("3", "3", "final", "better")
    (missing,) = [row for row in rows if (row["metric"], row["variant"], row["benchmark"]) == ("ausuc", "base", "SUN")]
    assert (missing["mean"], missing["n"], missing["states"]) == ("", "0", "3 missing")


def test_json_is_one_object_and_tables_go_to_people(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *place.grid, "--metric", "zsl_t1", "--json"]) == 0
    said = capsys.readouterr()
    (comparison,) = json.loads(said.out)["comparisons"]
    entries = {(one["variant"], one["benchmark"]): one for one in comparison["entries"]}
    assert entries["smooth", "TINY"]["summary"]["mean"] == pytest.approx(sum(SMOOTH) / 3, rel=1e-15)
    assert [seed["run_id"] for seed in entries["smooth", "TINY"]["seeds"]] == place.runs["smooth"]
    assert entries["rough", "TINY"]["reasons"].startswith("2 new")
    assert "T1 on the final split in percent" in said.err


def test_markdown_and_the_terminal_show_percent(place: Place, answer: Callable[..., str]) -> None:
    markdown = answer("compare", *place.grid, "--metric", "zsl_t1", "--markdown")
    (row,) = [line for line in markdown.splitlines() if line.startswith("| smooth | TINY ")]
    assert "71.0 ± 10.5" in row and "+11.0" in row and "better" in row
    plain = answer("compare", *place.grid, "--metric", "zsl_t1")
    (row,) = [line for line in plain.splitlines() if line.startswith("smooth ") and "TINY" in line]
    assert "71.0 ± 10.5" in row and "+11.0" in row


def test_latex_holds_tables(place: Place, answer: Callable[..., str]) -> None:
    latex = answer("compare", *place.grid, "--metric", "zsl_t1", "--latex")
    assert r"\begin{tabular}" in latex and "71.0" in latex and "smooth" in latex


def test_ids_of_runs_take_the_place_of_a_name(place: Place, answer: Callable[..., str]) -> None:
    runs = [*place.runs["smooth"], *place.runs["base"]]
    where = ["--tracking-uri", place.store.uri, "--metric", "zsl_t1", "--json"]
    (comparison,) = json.loads(answer("compare", *runs, "--base", "base", *where))["comparisons"]
    assert (comparison["base"], comparison["variants"]) == ("base", ["base", "smooth"])
    (alone,) = json.loads(answer("compare", runs[0], *where))["comparisons"]
    assert alone["variants"] == ["smooth"]


def test_mistakes_are_one_sentence(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "component"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: there is no ablation 'component'")
    assert main(["compare", *place.grid, "--metric", "h"]) == 2
    assert capsys.readouterr().err.startswith("error: 'h' is no figure [--metric] (name one of zsl_t1, ")
    assert main(["compare", *place.grid, "--benchmarks", "cup"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no benchmark 'cup' [--benchmarks]")
