"""`report`: every figure on the page is worked out again from the runs that the page cites, read from the store."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.ablation.report import make_report
from pipeline.ablation.request import AblationRequest
from pipeline.analysis.runs import FIGURES
from pipeline.cli.app import main
from pipeline.tracking.store import TrackingStore
from pipeline.where import Where
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

TEXT = (
    "seeds: [0, 1, 2]\nprimary: gzsl_h\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n  rough: {loss.scale: 40}\n"
)
SCORES = {"base": (0.5, 0.61, 0.7), "smooth": (0.613, 0.7, 0.82), "rough": (0.4,)}
"""By variant and seed."""
CLASSES = {"A": ("seen", 0.25), "B": ("unseen", 0.5)}
"""Group and accuracy of the base; each variant is better by its score's tenth."""


@dataclass
class Tables(HTMLParser):
    """The tables of a page: of every cell its `data-value`, else its text."""

    found: list[tuple[dict[str, str | None], list[list[str]]]] = field(default_factory=list)
    """Attributes of each table, and its rows."""

    def __post_init__(self) -> None:
        super().__init__()
        self._value: str | None = None
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append((dict(attrs), []))
        elif tag == "tr" and self.found:
            self.found[-1][1].append([])
        elif tag in ("td", "th"):
            self._value, self._text = dict(attrs).get("data-value"), []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._text is not None:
            text = "".join(self._text).strip() if self._value is None else self._value
            self.found[-1][1][-1].append(text)
            self._text = None


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
def shown(request_of_a_page: AblationRequest) -> Tables:
    made = make_report(request_of_a_page, request_of_a_page.where.storage.parent / "page.html", None, "report grid")
    page = Tables()
    page.feed(made.path.read_text())
    return page


def cited_runs(shown: Tables) -> list[list[str]]:
    """Rows of the table of runs that name one: variant, benchmark, seed, state, figures, times, id."""
    (rows,) = (rows for attributes, rows in shown.found if "runs" in str(attributes.get("class")))
    return [row for row in rows[1:] if row[-1]]


def test_every_figure_of_a_run_is_the_stores(shown: Tables, request_of_a_page: AblationRequest) -> None:
    store = TrackingStore.connect(request_of_a_page.where.tracking_uri)
    rows = cited_runs(shown)
    assert len(rows) == sum(map(len, SCORES.values()))
    order = ["gzsl_h", *(metric for metric in FIGURES if metric != "gzsl_h")]
    for variant, benchmark, seed, _, *values in rows:
        run = store.get(values[-1])
        told = (run.tags["mgmrn.variant"], run.tags["mgmrn.benchmark"], run.tags["mgmrn.seed"])
        assert told == (variant, benchmark, seed)
        assert [float(value) for value in values[: len(order)]] == [run.metrics[f"test/{one}"] for one in order]


@pytest.mark.parametrize("metric", FIGURES)
def test_means_and_differences_are_those_of_the_cited_runs(
    shown: Tables, request_of_a_page: AblationRequest, metric: str
) -> None:
    store = TrackingStore.connect(request_of_a_page.where.tracking_uri)
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for variant, _, seed, *_, run_id in cited_runs(shown):
        scores[variant][seed] = store.get(run_id).metrics[f"test/{metric}"]
    (rows,) = (rows for attributes, rows in shown.found if attributes.get("data-metric") == metric)
    body = {row[0]: row[1:] for row in rows if row[0] in SCORES}
    assert body.keys() == SCORES.keys()
    for variant, (mean, difference, *_) in body.items():
        assert float(mean) == pytest.approx(statistics.fmean(scores[variant].values()), abs=1e-12)
        if variant != "base":
            paired = [score - scores["base"][seed] for seed, score in scores[variant].items()]
            assert float(difference) == pytest.approx(statistics.fmean(paired), abs=1e-12)


def test_gains_of_classes_are_those_of_the_cited_runs(request_of_a_page: AblationRequest) -> None:
    made = make_report(request_of_a_page, request_of_a_page.where.storage.parent / "again.html", None, "report grid")
    changes = made.content.classes
    assert set(changes["variant"]) == {"smooth", "rough"}
    for variant, change in changes.groupby("variant"):
        pairs = list(zip(SCORES[str(variant)], SCORES["base"], strict=False))
        gain = statistics.fmean(own - theirs for own, theirs in pairs) / 10
        assert dict(zip(change["class"], change["group"], strict=True)) == {
            name: one for name, (one, _) in CLASSES.items()
        }
        assert list(change["difference"]) == pytest.approx([gain] * len(CLASSES))


def test_report_prints_the_page_and_the_runs_that_it_cites(
    request_of_a_page: AblationRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys are an interface: scripts read them."""
    asked, page = request_of_a_page, tmp_path / "page.html"
    where = [
        "--tracking-uri",
        asked.where.tracking_uri,
        "--data-root",
        str(asked.where.data_root),
        "--out",
        str(page),
        "--json",
    ]
    assert main(["report", asked.file.label, *where]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["report", "parent_run_id", "runs"]
    assert (result["report"], len(result["runs"])) == (str(page), sum(map(len, SCORES.values())))
    assert all(run_id in page.read_text() for run_id in result["runs"])


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
