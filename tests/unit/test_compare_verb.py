"""`compare`: of a grid as far as it is there, or of single runs; every form that it prints has the figures of the runs that it cites."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mgmrn.errors import UserError
from pipeline.ablation.cells import GridCell
from pipeline.ablation.compare import compare_grid, compare_runs
from pipeline.ablation.request import AblationRequest
from pipeline.analysis import load_runs
from pipeline.analysis.runs import FIGURES
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

    def compared(self, *run_ids: str, base: str | None = None) -> pd.DataFrame:
        return compare_runs(run_ids, base, "gzsl_h", self.store.uri)[0].entries

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
    for one in compared:
        assert (one.base, one.split) == ("base", "final")
        assert (one.variants, one.benchmarks) == (["base", "smooth", "rough"], ["TINY", "SUN"])


def test_one_figure_alone(place: Place) -> None:
    (comparison,) = compare_grid(place.request(), "gzsl_h")
    entries = comparison.entries.set_index(["benchmark", "variant"])
    smooth, rough = entries.loc[("TINY", "smooth")], entries.loc[("TINY", "rough")]
    assert smooth["mean"] == pytest.approx(sum(SMOOTH) / 3 + list(FIGURES).index("gzsl_h") / 100)
    assert (smooth["difference"], smooth["pairs"]) == (pytest.approx(0.11), 3)
    assert smooth["run_ids"].split() == place.runs["smooth"], "test images count, not validation images"
    assert (rough["verdict"], rough["states"]) == ("insufficient seeds", "2 new")
    assert (entries.loc["SUN"]["n"] == 0).all() and (entries.loc["SUN"]["states"] == "3 missing").all()


def test_runs_are_compared_by_variant_and_paired_by_seed(place: Place) -> None:
    entries = place.compared(*place.runs["smooth"][::-1], *place.runs["base"])
    assert entries[["variant", "verdict", "pairs"]].to_numpy().tolist() == [["smooth", "base", 0], ["base", "worse", 3]]
    assert entries["difference"][1] == pytest.approx(-0.11)
    assert entries["run_ids"][0].split() == place.runs["smooth"]


def test_the_base_among_runs_can_be_named(place: Place) -> None:
    runs = [*place.runs["rough"], *place.runs["smooth"], *place.runs["base"]]
    assert list(place.compared(*runs, base="base")["variant"]) == ["base", "rough", "smooth"]
    with pytest.raises(UserError, match="no run is of the variant 'full'") as caught:
        place.compared(*runs, base="full")
    assert (caught.value.where, caught.value.hint) == ("--base", "name one of rough, smooth, base")


def test_configs_with_the_same_name_are_told_apart(place: Place) -> None:
    """As two calls of `train` with other overrides are."""
    cells = [place.cells["base"][0], place.cells["smooth"][0]]
    runs = [place.add(cell.final(DECIDED), 0.5, variant="mgmrn") for cell in cells]
    assert list(place.compared(*runs)["variant"]) == [f"mgmrn.{cell.tune.group_hash[:8]}" for cell in cells]
    seeds = [place.add(cell.final(DECIDED), 0.5, variant="mgmrn") for cell in place.cells["base"][1:]]
    assert list(place.compared(runs[0], *seeds)["variant"]) == ["mgmrn"], "seeds alone make no other config"


def test_two_runs_of_one_config_and_seed_are_refused(place: Place) -> None:
    first, again = place.runs["base"][0], place.add(place.cells["base"][0].final(DECIDED), 0.5)
    with pytest.raises(UserError, match=f"{first} and {again} are both of base on TINY with seed 0"):
        place.compared(first, again)
    with pytest.raises(UserError, match=f"{first} and {first} are both of"):
        place.compared(first, first)


def test_runs_that_are_not_finished_or_stand_for_something_else_are_refused(place: Place) -> None:
    parent = place.store.create_parent("launch", {"mgmrn.kind": "launch"})
    cell = place.cells["base"][0].final(DECIDED)
    unfinished = create_child(place.store, parent, cell.name, tags_of(cell), cell.config)
    link = place.store.create_link(parent, cell.name, tags_of(cell, kind="link"))
    place.store.finish(link, "FINISHED", "linked")
    for run_id in (parent, unfinished, link):
        with pytest.raises(UserError, match=f"{run_id} is no finished training run"):
            place.compared(place.runs["base"][0], run_id)
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        place.compared("0123456789abcdef" * 2)


def test_runs_on_validation_and_on_test_images_are_not_compared(place: Place) -> None:
    tune = place.add(place.cells["smooth"][0].tune, 0.5)
    with pytest.raises(UserError, match="some runs are scored on validation images and some on test images"):
        place.compared(place.runs["base"][0], tune)
    (alone,) = compare_runs([tune], None, "gzsl_h", place.store.uri)
    assert alone.split == "tune" and alone.entries["mean"][0] == pytest.approx(0.53)


def test_csv_and_json_cite_the_runs_and_tables_go_to_people(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *place.grid, "--csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index(["metric", "variant", "benchmark"])
    assert len(frame) == len(FIGURES) * 6
    smooth, missing = frame.loc[("zsl_t1", "smooth", "TINY")], frame.loc[("ausuc", "base", "SUN")]
    assert smooth["mean"] == pytest.approx(sum(SMOOTH) / 3, rel=1e-15)
    assert smooth["run_ids"].split() == place.runs["smooth"]
    assert list(smooth[["n", "pairs", "split", "verdict"]]) == [3, 3, "final", "better"]
    assert (missing["n"], missing["states"]) == (0, "3 missing")
    assert main(["compare", *place.grid, "--metric", "zsl_t1", "--json"]) == 0
    said = capsys.readouterr()
    (comparison,) = json.loads(said.out)["comparisons"]
    entries = {(one["variant"], one["benchmark"]): one for one in comparison["entries"]}
    assert entries["smooth", "TINY"]["summary"]["mean"] == smooth["mean"]
    assert [seed["run_id"] for seed in entries["smooth", "TINY"]["seeds"]] == place.runs["smooth"]
    assert "T1 on the final split in percent" in said.err


def test_markdown_latex_and_the_terminal_show_percent(place: Place, answer: Callable[..., str]) -> None:
    for form, start in (("--markdown", "| smooth | TINY "), ("--latex", "smooth &"), (None, "smooth ")):
        shown = answer("compare", *place.grid, "--metric", "zsl_t1", *([form] if form else []))
        row = next(line for line in shown.splitlines() if line.startswith(start) and "71.0" in line)
        assert "10.5" in row and (form == "--latex" or "+11.0" in row)


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
    for names in (place.grid, [*place.runs["base"], *place.options]):
        assert main(["compare", *names, "--metric", "h"]) == 2
        assert capsys.readouterr().err.startswith("error: 'h' is no figure [--metric] (name one of zsl_t1, ")
    assert main(["compare", *place.grid, "--benchmarks", "cup"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no benchmark 'cup' [--benchmarks]")


def test_runs_are_loaded_as_a_table_for_notebooks(place: Place) -> None:
    runs = load_runs("mgmrn/train", tracking_uri=place.store.uri, where="tags.`mgmrn.split` = 'final'")
    smooth = runs[runs["variant"] == "smooth"].set_index("seed").sort_index()
    assert list(smooth["run_id"]) == place.runs["smooth"]
    assert list(smooth["test/zsl_t1"]) == list(SMOOTH)
    run = place.store.get(place.runs["smooth"][0])
    columns = ["name", "status", "benchmark", "split", "config_hash", "group_hash", "gamma", "seconds"]
    tags = (run.tags[f"mgmrn.{name}"] for name in ("config_hash", "group_hash"))
    assert list(smooth.loc[0, columns]) == [run.name, "FINISHED", "TINY", "final", *tags, 0.25, run.seconds]
    table = runs.pivot_table(index="variant", columns="benchmark", values="test/gzsl_h")
    assert table.loc["smooth", "TINY"] == pytest.approx(sum(SMOOTH) / 3 + 0.03)
    both = load_runs(tracking_uri=place.store.uri)
    assert {"tune", "final"} <= set(both["split"]) and both["val/gzsl_h"].notna().any()


def test_an_ablation_includes_the_runs_that_it_took_from_other_launches(place: Place) -> None:
    store = TrackingStore.connect(place.store.uri, "mgmrn/ablation/shared")
    tags = {"mgmrn.kind": "link", "mgmrn.variant": "alike", "mgmrn.linked_run_id": place.runs["base"][0]}
    store.finish(store.create_link(store.create_parent("ablation", {}), "link", tags), "FINISHED", "linked")
    (run,) = load_runs("shared", tracking_uri=place.store.uri).itertuples()
    assert (run.run_id, run.variant, run.seed) == (place.runs["base"][0], "alike", 0)
    with pytest.raises(UserError, match="there is no run in 'nothing'"):
        load_runs("nothing", tracking_uri=place.store.uri)


def test_the_example_of_the_docs_prints_means_by_variant(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TrackingStore.connect(place.store.uri, "mgmrn/ablation/components")
    parent = store.create_parent("ablation", {})
    for cell, score in zip(place.cells["base"], (0.5, 0.6, 0.7), strict=False):
        run_in(store, parent, cell.final(DECIDED), score)
    (tmp_path / ".mgmrn").mkdir()
    shutil.copy(place.folder / "mlflow.db", tmp_path / ".mgmrn" / "mlflow.db")
    page = Path(__file__).parents[2] / "docs" / "how-to" / "read-results.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert re.search(r"TINY\s+base\s+0\.63\s+0\.1\s+3", capsys.readouterr().out)
