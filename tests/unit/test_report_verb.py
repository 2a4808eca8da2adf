"""`report`: every figure on the page is recomputed from the runs that the page cites."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from pathlib import Path

import pandas as pd
import pytest

from mgmrn.errors import UserError
from pipeline.ablation.report import Report, make_report
from pipeline.ablation.request import AblationRequest
from pipeline.analysis import load_runs
from pipeline.analysis.runs import FIGURES
from pipeline.cli.app import main
from pipeline.tracking.store import TrackingStore
from pipeline.where import Where
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid
from tests.pages import Node, parsed

TEXT = (
    "seeds: [0, 1, 2]\nprimary: gzsl_h\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n  rough: {loss.scale: 40}\n"
)
SCORES = {"base": (0.5, 0.61, 0.7), "smooth": (0.613, 0.7, 0.82), "rough": (0.4,)}
"""By variant and seed."""
CLASSES = {"A": ("seen", 0.25), "B": ("unseen", 0.5)}
"""Group and accuracy of the base; each variant is better by its score's tenth."""


@pytest.fixture(scope="module")
def request_of_a_page(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> AblationRequest:
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    write_data(folder / "data")
    file = write_grid(folder, TEXT)
    parent = store.create_parent("launch", {})
    for cell in cells_of(file, folder / "data"):
        for score in SCORES[cell.variant][cell.seed : cell.seed + 1]:
            run_in(store, parent, cell.tune, 0.9)
            leave_evaluation(store, run_in(store, parent, cell.final(DECIDED), score), score, folder)
    return AblationRequest(file, Where(store.uri, folder / "data", folder / "runs"))


def leave_evaluation(store: TrackingStore, run_id: str, score: float, folder: Path) -> None:
    """The artifacts that the page reads."""
    curve, classes = folder / "curve.csv", folder / "per_class.csv"
    curve.write_text(f"gamma,unseen,seen,harmonic\n0,0.0,{score},0\n1,{score},0.0,0\n")
    rows = [f"{name},{group},4,{accuracy + score / 10}" for name, (group, accuracy) in CLASSES.items()]
    classes.write_text("\n".join(("class,group,images,accuracy", *rows)))
    for path in (curve, classes):
        store.log_file(run_id, path, "eval")


@pytest.fixture(scope="module")
def made(request_of_a_page: AblationRequest) -> Report:
    return make_report(request_of_a_page, request_of_a_page.where.storage.parent / "page.html", None, "report grid")


@pytest.fixture(scope="module")
def shown(made: Report) -> Node:
    return parsed(made.path.read_text())


@pytest.fixture(scope="module")
def runs(request_of_a_page: AblationRequest) -> pd.DataFrame:
    """The final runs in the store."""
    where = "tags.`mgmrn.split` = 'final'"
    return load_runs("mgmrn/train", tracking_uri=request_of_a_page.where.tracking_uri, where=where)


def rows_of(table: Node) -> list[list[str]]:
    """Cells of the rows of a table's body: their `data-value`, else their text."""
    rows = table.one("tbody").all("tr")
    cells = ([one for one in row.children if isinstance(one, Node)] for row in rows)
    return [[one.attributes.get("data-value", one.text) for one in row] for row in cells]


def test_every_figure_of_a_run_is_the_stores(shown: Node, runs: pd.DataFrame) -> None:
    order = ["gzsl_h", *(metric for metric in FIGURES if metric != "gzsl_h")]
    stored = runs.set_index("run_id")
    rows = [row for row in rows_of(shown.one("table", class_="sortable runs")) if row[-1]]
    assert {row[-1] for row in rows} == set(runs["run_id"])
    for variant, benchmark, seed, _, *values in rows:
        run = stored.loc[values[-1]]
        assert (run["variant"], run["benchmark"], str(run["seed"])) == (variant, benchmark, seed)
        assert [float(value) for value in values[: len(order)]] == [run[f"test/{metric}"] for metric in order]


@pytest.mark.parametrize("metric", FIGURES)
def test_means_and_differences_are_those_of_the_runs(shown: Node, runs: pd.DataFrame, metric: str) -> None:
    wide = runs.pivot(index="seed", columns="variant", values=f"test/{metric}")
    rows = {row[0]: row[1:] for row in rows_of(shown.one("table", data_metric=metric))}
    assert rows.keys() == SCORES.keys()
    for variant, (mean, difference, *_) in rows.items():
        assert float(mean) == pytest.approx(wide[variant].mean(), abs=1e-12)
        if variant != "base":
            assert float(difference) == pytest.approx((wide[variant] - wide["base"]).mean(), abs=1e-12)


def test_gains_of_classes_are_those_of_the_runs(made: Report) -> None:
    changes = made.content.classes
    assert set(changes["variant"]) == {"smooth", "rough"}
    for variant, change in changes.groupby("variant"):
        pairs = list(zip(SCORES[str(variant)], SCORES["base"], strict=False))
        gain = statistics.fmean(own - theirs for own, theirs in pairs) / 10
        assert change[["class", "group"]].to_numpy().tolist() == [[name, group] for name, (group, _) in CLASSES.items()]
        assert list(change["difference"]) == pytest.approx([gain] * len(CLASSES))


def test_report_prints_the_page_and_the_runs_that_it_cites(
    request_of_a_page: AblationRequest, runs: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys are an interface: scripts read them."""
    where, page = request_of_a_page.where, tmp_path / "page.html"
    options = {"--tracking-uri": where.tracking_uri, "--data-root": str(where.data_root), "--out": str(page)}
    command = ["report", request_of_a_page.file.label, *itertools.chain(*options.items()), "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["report", "parent_run_id", "runs"]
    assert (result["report"], set(result["runs"])) == (str(page), set(runs["run_id"]))


def test_a_grid_without_any_score_has_no_page(request_of_a_page: AblationRequest, tmp_path: Path) -> None:
    empty = f"sqlite:///{shutil.copy(request_of_a_page.where.storage.parent / 'mlflow.db', tmp_path / 'mlflow.db')}"
    file = write_grid(tmp_path, "variants:\n  other: {loss.scale: 31}\nfixed: {loss.scale: 30}\n", "empty")
    with pytest.raises(UserError, match="no cell of empty has a score yet"):
        make_report(
            AblationRequest(file, Where(empty, request_of_a_page.where.data_root, tmp_path / "runs")),
            tmp_path / "page.html",
            None,
            "report empty",
        )
    assert not (tmp_path / "page.html").exists()
