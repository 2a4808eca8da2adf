"""What a grid leaves in a real store (sqlite) besides its runs: links, figures over seeds, and tables."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.ablation.cells import GridCell
from pipeline.ablation.grid import Grid, make_grid
from pipeline.ablation.plan import PlannedCell, plan_cells
from pipeline.ablation.results import comparisons
from pipeline.ablation.track import LINK_KIND, NOTE_LIMIT, NOTE_TAG, SCORED, description, log_grid
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import FIGURES
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.trials.known import KnownRuns
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

TEXT = "seeds: [0, 1, 2]\nprimary: ausuc\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n"
SCORES = {"base": (0.5, 0.6, 0.7), "smooth": (0.61, 0.7, 0.82)}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> str:
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(tables, file)
    return f"sqlite:///{file}"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@dataclass
class Lab:
    """A grid with three seeds, and its place in the store."""

    store: TrackingStore
    grid: Grid
    cells: list[GridCell]
    parent: str
    runs: list[TrackedRun]
    """Those of this test, the latest last; the database holds those of others too."""

    def run(self, cell: GridCell, parent: str, **more: str) -> None:
        """Both runs of a cell, below a parent."""
        score = SCORES[cell.variant][cell.seed]
        cells = [cell.tune] if cell.final_data is None else [cell.tune, cell.final(DECIDED)]
        self.runs += [self.store.get(run_in(self.store, parent, one, score, **more)) for one in cells]

    def plan(self) -> list[PlannedCell]:
        return plan_cells(self.cells, KnownRuns(reversed(self.runs), self.store.experiment_id))

    def log(self) -> tuple[list[PlannedCell], list[Comparison]]:
        """As the end of a launch does; answers with what was logged."""
        planned = self.plan()
        compared = comparisons(self.grid, planned)
        log_grid(self.store, self.parent, planned, compared)
        return planned, compared

    def links(self) -> list[TrackedRun]:
        return self.store.own_runs(f"tags.`mgmrn.kind` = '{LINK_KIND}'")

    def artifact(self, path: str) -> str:
        return self.store.read_text(self.parent, path)


@pytest.fixture
def lab(database: str, data_root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Lab:
    return a_lab(database, data_root, tmp_path, request.node.name, TEXT)


def a_lab(database: str, data_root: Path, folder: Path, name: str, text: str) -> Lab:
    file = write_grid(folder, text)
    store = TrackingStore.connect(database, f"mgmrn/ablation/{name}")
    parent = store.create_parent("ablation grid", {"mgmrn.kind": "ablation"})
    return Lab(store, make_grid(file), cells_of(file, data_root), parent, [])


def linked(runs: Sequence[TrackedRun]) -> set[str]:
    return {run.tags["mgmrn.linked_run_id"] for run in runs}


def test_runs_below_other_parents_are_linked_and_own_ones_are_not(lab: Lab) -> None:
    elsewhere = lab.store.create_parent("launch", {})
    lab.run(lab.cells[0], elsewhere)
    lab.run(lab.cells[1], lab.parent)
    planned, _ = lab.log()
    (link,) = lab.links()
    run = planned[0].evaluated
    assert run is not None and linked([link]) == {run.run_id}
    assert (link.parent_run_id, link.status, link.name) == (lab.parent, "FINISHED", run.name)


def test_a_link_carries_figures_and_tags_of_its_run_and_the_variant_s_own_name(lab: Lab) -> None:
    elsewhere = lab.store.create_parent("launch", {})
    lab.run(lab.cells[3], elsewhere, variant="mgmrn", study="small")
    planned, _ = lab.log()
    (link,) = lab.links()
    run = planned[3].evaluated
    assert run is not None and run.tags["mgmrn.variant"] == "mgmrn"
    assert (link.tags["mgmrn.kind"], link.tags["mgmrn.variant"]) == ("link", "smooth")
    for tag in ("benchmark", "seed", "split", "config_hash", "group_hash", "data_digest"):
        assert link.tags[f"mgmrn.{tag}"] == run.tags[f"mgmrn.{tag}"], tag
    assert link.metrics == {f"test/{key}": run.metrics[f"test/{key}"] for key in FIGURES}


def test_links_are_made_once(lab: Lab) -> None:
    elsewhere = lab.store.create_parent("launch", {})
    lab.run(lab.cells[0], elsewhere)
    lab.log()
    lab.run(lab.cells[1], elsewhere)
    lab.log()
    lab.log()
    planned = lab.plan()
    assert len(lab.links()) == 2
    assert linked(lab.links()) == {one.evaluated.run_id for one in planned if one.evaluated}


def test_a_link_that_a_dead_driver_left_is_made_again(lab: Lab) -> None:
    lab.run(lab.cells[0], lab.store.create_parent("launch", {}))
    run = lab.runs[-1]
    tags = {"mgmrn.kind": LINK_KIND, "mgmrn.variant": "base", "mgmrn.linked_run_id": run.run_id}
    left = lab.store.create_link(lab.parent, run.name, tags)
    lab.store.finish(left, "KILLED", "driver died")
    lab.log()
    assert sorted(one.status for one in lab.links()) == ["FINISHED", "KILLED"]


def test_each_grid_has_links_of_its_own(lab: Lab) -> None:
    lab.run(lab.cells[0], lab.store.create_parent("launch", {}))
    lab.log()
    other = replace(lab, parent=lab.store.create_parent("ablation other", {}))
    other.log()
    assert sorted(str(link.parent_run_id) for link in lab.links()) == sorted([lab.parent, other.parent])


def test_a_run_that_two_variants_share_is_linked_under_the_name_that_it_has_not(lab: Lab) -> None:
    base = lab.cells[0]
    lab.run(base, lab.parent)
    lab.cells = [base, replace(base, variant="alike")]
    lab.log()
    lab.log()
    (link,) = lab.links()
    assert (link.tags["mgmrn.variant"], linked([link])) == ("alike", {lab.runs[-1].run_id})


def test_on_the_tune_split_links_carry_figures_of_validation_images(
    database: str, data_root: Path, tmp_path: Path
) -> None:
    lab = a_lab(database, data_root, tmp_path, "tuned", "split: tune\n" + TEXT)
    lab.run(lab.cells[0], lab.store.create_parent("launch", {}))
    _, compared = lab.log()
    (link,) = lab.links()
    assert link.metrics.keys() == {f"val/{key}" for key in FIGURES}
    assert link.tags["mgmrn.split"] == "tune" and {one.split for one in compared} == {"tune"}


def test_figures_over_seeds_are_those_that_compare_tells(lab: Lab) -> None:
    for cell in lab.cells:
        lab.run(cell, lab.parent)
    _, compared = lab.log()
    metrics = lab.store.get(lab.parent).metrics
    assert [one.metric for one in compared] == ["ausuc", *(key for key in FIGURES if key != "ausuc")]
    for comparison in compared:
        for entry in comparison.entries.itertuples():
            key = f"TINY/{entry.variant}/{comparison.metric}"
            assert [metrics[f"{key}/{name}"] for name in ("mean", "std", "n")] == [entry.mean, entry.std, 3]
    shift = list(FIGURES).index("gzsl_h") / 100
    mean = statistics.fmean(SCORES["smooth"]) + shift
    assert metrics["TINY/smooth/gzsl_h/mean"] == pytest.approx(mean), "by hand"
    names = ["difference", "low", "high", "p_holm"]
    smooth = compared[0].entries.set_index("variant").loc["smooth", names].tolist()
    assert [metrics[f"TINY/smooth/ausuc/{name}"] for name in names] == smooth
    assert not any(name.startswith("TINY/base/ausuc/d") for name in metrics), "the base differs from nothing"


def test_what_is_not_known_is_not_logged(lab: Lab) -> None:
    lab.run(lab.cells[0], lab.parent)
    lab.log()
    metrics = lab.store.get(lab.parent).metrics
    assert {name.rpartition("/")[2] for name in metrics if name != SCORED} == {"mean", "n"}
    assert not any("smooth" in name for name in metrics)
    assert metrics[SCORED] == 1


def test_a_grid_that_is_logged_again_adds_a_step_and_the_last_one_counts(lab: Lab) -> None:
    key = "TINY/base/ausuc/mean"
    lab.run(lab.cells[0], lab.parent)
    lab.run(lab.cells[1], lab.parent)
    lab.log()
    two = lab.store.get(lab.parent).metrics[key]
    lab.log()
    assert lab.store.logged_steps(lab.parent, SCORED) == {0, 1}
    del lab.runs[2:]  # As a run does that is no longer of these data.
    lab.log()
    metrics = lab.store.get(lab.parent).metrics
    assert lab.store.logged_steps(lab.parent, key) == {0, 1, 2}
    assert metrics[SCORED] == 1 and metrics[key] != two


def test_tables_are_artifacts_of_the_parent(lab: Lab) -> None:
    for cell in lab.cells[:-1]:
        lab.run(cell, lab.parent)
    planned, compared = lab.log()
    rows = list(csv.DictReader(io.StringIO(lab.artifact("comparison.csv"))))
    assert [(row["metric"], row["variant"]) for row in rows[:3]] == [
        ("ausuc", "base"),
        ("ausuc", "smooth"),
        ("zsl_t1", "base"),
    ]
    assert float(rows[1]["mean"]) == compared[0].entries["mean"][1]
    cited = {run_id for row in rows for run_id in row["run_ids"].split()}
    assert cited == {one.evaluated.run_id for one in planned if one.evaluated}
    assert rows[1]["states"] == "1 new"
    table = json.loads(lab.artifact("comparison.json"))
    assert len(table["comparisons"]) == len(FIGURES)
    seeds = table["comparisons"][0]["entries"][1]["seeds"]
    assert [(one["seed"], one["state"]) for one in seeds] == [(0, "cached"), (1, "cached"), (2, "new")]
    assert seeds[0]["metrics"]["gzsl_h"] == pytest.approx(SCORES["smooth"][0] + 0.03)


def test_the_description_has_the_benchmarks_side_by_side_with_the_primary_figure_first(lab: Lab) -> None:
    for cell in lab.cells:
        lab.run(cell, lab.parent)
    _, compared = lab.log()
    note = lab.store.get(lab.parent).tags[NOTE_TAG]
    assert note.startswith("### AUSUC") and "| variant | TINY |" in note
    assert "| base (base) | 60.0 ± 10.0 (n = 3) |" in note
    assert description([compared[0]] * 100).endswith("More in the artifact comparison.csv.\n")
    assert len(description([compared[0]] * 100)) < NOTE_LIMIT + 100


def test_the_cost_of_a_cell_is_that_of_both_its_runs(lab: Lab) -> None:
    lab.run(lab.cells[0], lab.parent, gpu_seconds="2.5")
    lab.runs = [replace(run, seconds=10.0) for run in lab.runs]
    first = comparisons(lab.grid, lab.plan())[0].cells.iloc[0]
    assert (first["seconds"], first["gpu_seconds"], first["run_id"]) == (20.0, 5.0, lab.runs[-1].run_id)


def test_on_the_tune_split_a_cell_has_one_run_to_pay_for(database: str, data_root: Path, tmp_path: Path) -> None:
    lab = a_lab(database, data_root, tmp_path, "paid", "split: tune\n" + TEXT)
    lab.run(lab.cells[0], lab.parent, gpu_seconds="2.5")
    assert comparisons(lab.grid, lab.plan())[0].cells["gpu_seconds"][0] == 2.5
