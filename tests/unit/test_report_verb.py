"""`report`: every figure on the page is computed again from the runs that the page cites."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.ablation.report import make_report
from pipeline.analysis import load_runs
from pipeline.analysis.runs import FIGURES
from pipeline.cli.app import main
from pipeline.where import Where
from tests.finished_grid import CLASSES, SCORES, FinishedGrid
from tests.grids import write_grid
from tests.pages import Node, parsed


def rows_of(table: Node) -> list[list[str]]:
    """Cells of the rows of a table's body: their `data-value`, else their text."""
    rows = table.one("tbody").all("tr")
    cells = ([one for one in row.children if isinstance(one, Node)] for row in rows)
    return [[one.attributes.get("data-value", one.text) for one in row] for row in cells]


def test_every_figure_on_the_page_is_that_of_the_cited_runs(finished_grid: FinishedGrid, tmp_path: Path) -> None:
    grid = finished_grid.copied_to(tmp_path)
    made = make_report(grid.file, grid.where, tmp_path / "page.html", None, "report grid")
    shown = parsed((tmp_path / "page.html").read_text())
    runs = load_runs("mgmrn/train", tracking_uri=grid.store.uri, where="tags.`mgmrn.split` = 'final'")
    stored = runs.set_index("run_id")
    rows = [row for row in rows_of(shown.one("table", class_="sortable runs")) if row[-1]]
    assert {row[-1] for row in rows} == set(made.run_ids) == set(runs["run_id"])
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
    changes = made.content.classes
    assert set(changes["variant"]) == {"smooth", "rough"}
    for variant, change in changes.groupby("variant"):
        pairs = zip(SCORES[str(variant)], SCORES["base"], strict=False)
        gain = statistics.fmean(own - theirs for own, theirs in pairs) / 10
        assert change[["class", "group"]].to_numpy().tolist() == [[name, group] for name, (group, _) in CLASSES.items()]
        assert list(change["difference"]) == pytest.approx([gain] * len(CLASSES))


def test_report_prints_the_page_and_the_runs_that_it_cites(
    finished_grid: FinishedGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *finished_grid.arguments, "--out", str(page), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["report", "parent_run_id", "runs"], "scripts read these keys"
    assert result["report"] == str(page) and page.is_file()
    assert set(result["runs"]) == {run_id for runs in finished_grid.runs.values() for run_id in runs}


def test_a_grid_without_any_score_has_no_page(finished_grid: FinishedGrid, tmp_path: Path) -> None:
    file = write_grid(tmp_path, "variants:\n  other: {loss.scale: 31}\nfixed: {loss.scale: 30}\n", "empty")
    where = Where(finished_grid.store.uri, finished_grid.folder / "data", tmp_path / "runs")
    with pytest.raises(UserError, match="no cell of empty has a score yet"):
        make_report(file, where, tmp_path / "page.html", None, "report empty")
    assert not (tmp_path / "page.html").exists()
