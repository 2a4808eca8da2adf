"""`compare`, `report` and `load_runs`: every form has the figures of the cited runs."""

import io
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

from mgmrn.errors import UserError
from pipeline.ablation.report import make_report
from pipeline.ablation.results import compare_runs
from pipeline.analysis import load_runs
from pipeline.analysis.runs import FIGURES, LOCALISED
from pipeline.analysis.tables import CSV_COLUMNS
from pipeline.cli.app import main
from pipeline.console import shell_command
from pipeline.errors import TrackingError
from pipeline.spool import PARENT_TAG
from pipeline.storage import StoragePath
from pipeline.tracking.store import TrackingStore
from pipeline.train.cell import Cell
from pipeline.where import Where
from tests.finished_grid import CLASSES, SCORES, FinishedGrid, add_run
from tests.grids import DECIDED, run_in, tags_of, write_grid
from tests.pages import Node, parsed
from tests.runs import create_child


@pytest.fixture(scope="module")
def grid(finished_grid: FinishedGrid, tmp_path_factory: pytest.TempPathFactory) -> FinishedGrid:
    return finished_grid.copied_to(tmp_path_factory.mktemp("compare"))


def compared(grid: FinishedGrid, *run_ids: str, base: str | None = None) -> pd.DataFrame:
    return compare_runs(run_ids, base, "gzsl_h", grid.store.uri)[0].entries


def add(grid: FinishedGrid, cell: Cell, **more: Any) -> str:
    """Create another finished run, in an experiment that grids do not read; returns its id."""
    return add_run(TrackingStore.connect(grid.store.uri, "mgmrn/others"), cell, 0.5, **more)


def test_runs_are_compared_by_variant_and_paired_by_seed(grid: FinishedGrid) -> None:
    entries = compared(grid, *grid.runs["smooth"][::-1], *grid.runs["base"])
    assert entries[["variant", "verdict", "pairs"]].to_numpy().tolist() == [["smooth", "base", 0], ["base", "worse", 3]]
    assert entries["run_ids"][0].split() == grid.runs["smooth"]
    runs = [*grid.runs["rough"], *grid.runs["smooth"], *grid.runs["base"]]
    assert list(compared(grid, *runs, base="base")["variant"]) == ["base", "rough", "smooth"]
    with pytest.raises(UserError, match="no run is of the variant 'full'") as caught:
        compared(grid, *runs, base="full")
    assert (caught.value.where, caught.value.hint) == ("--base", "name one of rough, smooth, base")


def test_configs_of_one_name_such_as_of_two_calls_of_train_are_told_apart(grid: FinishedGrid) -> None:
    cells = [grid.cells["base"][0], grid.cells["smooth"][0]]
    runs = [add(grid, cell.final(DECIDED), variant="mgmrn") for cell in cells]
    assert list(compared(grid, *runs)["variant"]) == [f"mgmrn.{cell.tune.group_hash[:8]}" for cell in cells]
    seeds = [add(grid, cell.final(DECIDED), variant="mgmrn") for cell in grid.cells["base"][1:]]
    assert list(compared(grid, runs[0], *seeds)["variant"]) == ["mgmrn"], "seeds alone make no other config"


def test_runs_that_cannot_be_compared_are_refused(grid: FinishedGrid) -> None:
    cell, first = grid.cells["base"][0].final(DECIDED), grid.runs["base"][0]
    again = add(grid, cell)
    with pytest.raises(UserError, match=f"{first} and {again} are both of base on TINY with seed 0"):
        compared(grid, first, again)
    parent = grid.store.create_parent("launch", {"mgmrn.kind": "launch"})
    unfinished = create_child(grid.store, parent, cell.name, tags_of(cell), cell.config)
    link = grid.store.create_parent(cell.name, {**tags_of(cell, kind="link"), PARENT_TAG: parent})
    grid.store.finish(link, "FINISHED", "linked")
    for run_id in (parent, unfinished, link):
        with pytest.raises(UserError, match=f"{run_id} is no finished training run"):
            compared(grid, first, run_id)
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        compared(grid, "0123456789abcdef" * 2)
    tune = add(grid, grid.cells["smooth"][0].tune)
    with pytest.raises(UserError, match="some runs are scored on validation images and some on test images"):
        compared(grid, first, tune)
    (alone,) = compare_runs([tune], None, "gzsl_h", grid.store.uri)
    assert alone.split == "tune" and alone.entries["mean"][0] == pytest.approx(0.53)


def test_csv_json_and_tables_cite_the_runs(grid: FinishedGrid, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*arguments: str) -> str:
        assert main(["compare", *arguments, "--metric", "zsl_t1"]) == 0
        return capsys.readouterr().out

    frame = pd.read_csv(io.StringIO(answer(*grid.arguments, "--csv")))
    assert tuple(frame.columns) == CSV_COLUMNS
    frame = frame.set_index(["variant", "benchmark"])
    smooth, missing = frame.loc[("smooth", "TINY")], frame.loc[("base", "SUN")]
    assert smooth["mean"] == pytest.approx(fmean(SCORES["smooth"]), rel=1e-15)
    assert smooth["run_ids"].split() == grid.runs["smooth"]
    assert list(smooth[["n", "pairs", "split", "verdict"]]) == [3, 3, "final", "better"]
    assert (missing["n"], missing["states"]) == (0, "3 missing")
    assert list(frame.loc[("rough", "TINY"), ["verdict", "states"]]) == ["insufficient seeds", "1 new"]
    (comparison,) = json.loads(answer(*grid.arguments, "--json"))["comparisons"]
    entries = {(one["variant"], one["benchmark"]): one for one in comparison["entries"]}
    assert entries["smooth", "TINY"]["summary"]["mean"] == smooth["mean"]
    assert [seed["run_id"] for seed in entries["smooth", "TINY"]["seeds"]] == grid.runs["smooth"]
    for form, start in ((["--markdown"], "| smooth | TINY "), (["--latex"], "smooth &"), ([], "smooth ")):
        lines = answer(*grid.arguments, *form).splitlines()
        *_, row = (line for line in lines if line.startswith(start) and "71.1" in line)
        assert "10.4" in row and (form == ["--latex"] or "+10.8" in row)
    where = ["--tracking-uri", grid.store.uri, "--json"]
    runs = [*grid.runs["smooth"], *grid.runs["base"]]
    (comparison,) = json.loads(answer(*runs, "--base", "base", *where))["comparisons"]
    assert (comparison["base"], comparison["variants"]) == ("base", ["base", "smooth"])


def test_runs_are_loaded_as_a_table_for_notebooks(grid: FinishedGrid) -> None:
    runs = load_runs("mgmrn/train", tracking_uri=grid.store.uri, where="tags.`mgmrn.split` = 'final'")
    smooth = runs[(runs["variant"] == "smooth") & (runs["status"] == "FINISHED")].set_index("seed").sort_index()
    assert list(smooth["run_id"]) == grid.runs["smooth"]
    assert list(smooth["test/zsl_t1"]) == list(SCORES["smooth"])
    run = grid.store.get(grid.runs["smooth"][0])
    columns = ["name", "status", "benchmark", "split", "config_hash", "group_hash", "gamma", "seconds"]
    tags = (run.tags[f"mgmrn.{name}"] for name in ("config_hash", "group_hash"))
    assert list(smooth.loc[0, columns]) == [run.name, "FINISHED", "TINY", "final", *tags, 0.25, run.seconds]
    both = load_runs(tracking_uri=grid.store.uri)
    assert {"tune", "final"} <= set(both["split"]) and both["val/gzsl_h"].notna().any()
    with pytest.raises(UserError, match="there is no run in 'nothing'"):
        load_runs("nothing", tracking_uri=grid.store.uri)


def test_an_ablation_includes_the_runs_that_it_took_from_other_launches(grid: FinishedGrid) -> None:
    store = TrackingStore.connect(grid.store.uri, "mgmrn/ablation/shared")
    tags = {"mgmrn.kind": "link", "mgmrn.variant": "alike", "mgmrn.linked_run_id": grid.runs["base"][0]}
    store.finish(store.create_parent("link", tags), "FINISHED", "linked")
    (run,) = load_runs("shared", tracking_uri=grid.store.uri).itertuples()
    assert (run.run_id, run.variant, run.seed) == (grid.runs["base"][0], "alike", 0)


def test_the_example_of_the_docs_prints_means(
    finished_grid: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / ".mgmrn").mkdir()
    grid = finished_grid.copied_to(tmp_path / ".mgmrn")
    store = TrackingStore.connect(grid.store.uri, "mgmrn/ablation/components")
    parent = store.create_parent("ablation", {})
    for cell, score in zip(grid.cells["base"], (0.5, 0.6, 0.7), strict=True):
        run_in(store, parent, cell.final(DECIDED), score)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "read-results.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert re.search(r"TINY\s+base\s+0\.63\s+0\.1\s+3", capsys.readouterr().out)


def rows_of(table: Node) -> list[list[str]]:
    """Cells of the rows of a table's body: their `data-value`, else their text."""
    rows = table.one("tbody").all("tr")
    cells = ([one for one in row.children if isinstance(one, Node)] for row in rows)
    return [[one.attributes.get("data-value", one.text) for one in row] for row in cells]


def test_every_figure_on_the_page_is_that_of_the_cited_runs(finished_grid: FinishedGrid, tmp_path: Path) -> None:
    grid = finished_grid.copied_to(tmp_path)
    names = [f"localise/test_unseen/all_levels/all_parts/{key}" for key in LOCALISED]
    for run_id, share in zip(grid.runs["base"], (0.25, 0.35, 0.45), strict=True):
        grid.store.log_metrics(run_id, 0, dict.fromkeys(names, share), 0)
    content, *_ = make_report(grid.file, grid.where, tmp_path / "page.html", None, ["grid"])
    place = ["TINY", "base", "test_unseen", "all levels", "all parts"]
    assert content.localisation.to_numpy().tolist() == [[*place, *["35.0 ± 10.0 (3)"] * 4]]
    shown = parsed((tmp_path / "page.html").read_text())
    runs = load_runs("mgmrn/train", tracking_uri=grid.store.uri, where="tags.`mgmrn.split` = 'final'")
    stored = runs.set_index("run_id")
    rows = [row for row in rows_of(shown.one("table", class_="sortable runs")) if row[-1]]
    assert {row[-1] for row in rows} == set(content.run_ids) == set(runs["run_id"])
    order = ["ausuc", *(metric for metric in FIGURES if metric != "ausuc")]
    for variant, benchmark, seed, _, *values in rows:
        run = stored.loc[values[-1]]
        assert (run["variant"], run["benchmark"], str(run["seed"])) == (variant, benchmark, seed)
        assert [float(value) for value in values[: len(order)]] == [run[f"test/{metric}"] for metric in order]
    for metric in FIGURES:
        wide = runs.pivot(index="seed", columns="variant", values=f"test/{metric}")
        by_variant = {row[0]: row[1:] for row in rows_of(shown.one("table", data_metric=metric))}
        assert by_variant.keys() == SCORES.keys()
        for variant, (mean, difference, *_) in by_variant.items():
            assert float(mean) == pytest.approx(wide[variant].mean(), abs=1e-12)
            if variant != "base":
                assert float(difference) == pytest.approx((wide[variant] - wide["base"]).mean(), abs=1e-12)
    changes = content.classes
    assert set(changes["variant"]) == {"smooth", "rough"}
    for variant, change in changes.groupby("variant"):
        pairs = zip(SCORES[str(variant)], SCORES["base"], strict=False)
        gain = fmean(own - theirs for own, theirs in pairs) / 10
        assert change[["class", "group"]].to_numpy().tolist() == [[name, group] for name, (group, _) in CLASSES.items()]
        assert list(change["difference"]) == pytest.approx([gain] * len(CLASSES))


def test_a_grid_without_any_score_has_no_page(finished_grid: FinishedGrid, tmp_path: Path) -> None:
    file = write_grid(tmp_path, "variants:\n  other: {loss.scale: 31}\nfixed: {loss.scale: 30}\n", "empty")
    where = Where(finished_grid.store.uri, finished_grid.folder / "data", StoragePath.parse(tmp_path / "runs"))
    with pytest.raises(UserError, match=r"no cell of empty has a score yet.*python -m pipeline ablate empty --x"):
        make_report(file, where, tmp_path / "page.html", None, ["empty", "--x"])
    assert not (tmp_path / "page.html").exists()


def test_grids_of_one_name_have_a_page_each(
    finished_grid: FinishedGrid, tmp_path: Path, asked: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    pages = set()
    for scale in ("loss.scale: 40", "loss.label_smoothing: 0.1", "loss.scale: 40"):
        write_grid(tmp_path, f"seeds: [0, 1]\nvariants:\n  other: {{{scale}}}\n")
        code, answer, err = asked("report", tmp_path / "grid.yaml", *finished_grid.options)
        assert code == 0, err
        pages.add(answer["report"])
    assert {str(path) for path in Path(".mgmrn/reports").iterdir()} == pages and len(pages) == 2
    command = shell_command("report", tmp_path / "grid.yaml", *finished_grid.options)
    assert all(command in Path(page).read_text() for page in pages)
