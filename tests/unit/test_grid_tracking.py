"""What a grid leaves in a real store (sqlite) besides its runs: links, figures over seeds, tables, a description."""

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pipeline.ablation.grid import Grid, GridCell, make_grid
from pipeline.ablation.plan import PlannedCell, plan_cell
from pipeline.ablation.results import LINK_KIND, SCORED, comparisons, description, log_grid
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.runs import FIGURES
from pipeline.spool import PARENT_TAG
from pipeline.tracking.store import NOTE_LIMIT, NOTE_TAG, TrackedRun, TrackingStore
from pipeline.trials.known import KnownRuns
from tests.grids import DECIDED, cells_of, run_in, write_data, write_grid

TEXT = "seeds: [0, 1, 2]\nprimary: ausuc\nvariants:\n  smooth: {loss.label_smoothing: 0.1}\n"
SCORES = {"base": (0.5, 0.6, 0.7), "smooth": (0.61, 0.7, 0.82)}


@dataclass
class Lab:
    """A grid with three seeds, and its place in the store."""

    store: TrackingStore
    grid: Grid
    cells: list[GridCell]
    parent: str
    runs: list[TrackedRun] = field(default_factory=list)
    """Runs of this test, the latest last; the database holds those of others too."""

    def run(self, cell: GridCell, parent: str | None = None, **more: str) -> None:
        """Add both runs of a cell, below the grid's parent or another one."""
        score = SCORES[cell.variant][cell.seed]
        cells = [cell.tune] if cell.final_data is None else [cell.tune, cell.final(DECIDED)]
        parent = parent or self.parent
        self.runs += [self.store.get(run_in(self.store, parent, one, score, **more)) for one in cells]

    def elsewhere(self) -> str:
        return self.store.create_parent("launch", {})

    def plan(self) -> list[PlannedCell]:
        known = KnownRuns.among(reversed(self.runs), self.store.experiment_id)
        return [plan_cell(cell, known) for cell in self.cells]

    def log(self) -> tuple[list[PlannedCell], list[Comparison]]:
        """Log as the end of a launch does; returns what was logged."""
        planned = self.plan()
        compared = comparisons(self.grid, planned)
        log_grid(self.store, self.parent, planned, compared)
        return planned, compared

    def variant(self, name: str) -> TrackedRun:
        """The run with a variant's figures over its seeds."""
        (run,) = self.store.own_runs(f"tags.`mgmrn.kind` = 'variant' and tags.`mgmrn.variant` = '{name}'")
        return run

    def data_of(self, run: TrackedRun) -> list[tuple[str, str, str]]:
        """Name, digest and splits of a run's data sets, as the UI shows them."""
        found = self.store.client.get_run(run.run_id).inputs.dataset_inputs
        return [(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in found]

    def links(self) -> list[TrackedRun]:
        return self.store.own_runs(f"tags.`mgmrn.kind` = '{LINK_KIND}'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Path:
    """Folder of a tracking database and the data."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(tables, folder / "mlflow.db")
    write_data(folder / "data")
    return folder


@pytest.fixture
def lab(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Lab:
    """The lab of TEXT, or of the text that the test names."""
    file = write_grid(tmp_path, getattr(request, "param", TEXT))
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db", f"mgmrn/ablation/{request.function.__name__}")
    parent = store.create_parent("ablation grid", {"mgmrn.kind": "ablation"})
    return Lab(store, make_grid(file), cells_of(file, folder / "data"), parent)


def linked(runs: Sequence[TrackedRun]) -> list[str]:
    return sorted(run.tags["mgmrn.linked_run_id"] for run in runs)


def test_a_run_below_another_parent_is_linked_with_its_figures_and_the_name_of_the_variant(lab: Lab) -> None:
    lab.run(lab.cells[3], lab.elsewhere(), variant="mgmrn", study="small")
    lab.store.set_tags(lab.runs[-1].run_id, {NOTE_TAG: "as the run has it"})
    lab.runs[-1] = lab.store.get(lab.runs[-1].run_id)
    lab.run(lab.cells[1])
    planned, _ = lab.log()
    (link,) = lab.links()
    run = planned[3].evaluated
    assert run is not None and linked([link]) == [run.run_id]
    assert (link.parent_run_id, link.status, link.name) == (lab.parent, "FINISHED", run.name)
    assert (link.tags["mgmrn.kind"], link.tags["mgmrn.variant"]) == ("link", "smooth")
    for tag in ("benchmark", "seed", "split", "config_hash", "group_hash", "data_digest"):
        assert link.tags[f"mgmrn.{tag}"] == run.tags[f"mgmrn.{tag}"], tag
    assert link.metrics == {f"test/{key}": run.metrics[f"test/{key}"] for key in FIGURES}
    assert link.tags[NOTE_TAG] == "as the run has it"
    data = ("TINY", run.tags["mgmrn.data_digest"][:36], "final")
    assert lab.data_of(link) == lab.data_of(lab.variant("smooth")) == [data]


def test_links_are_made_once_in_each_grid(lab: Lab) -> None:
    elsewhere = lab.elsewhere()
    lab.run(lab.cells[0], elsewhere)
    run = lab.runs[-1]
    tags = {"mgmrn.kind": LINK_KIND, "mgmrn.variant": "base", "mgmrn.linked_run_id": run.run_id}
    lab.store.finish(lab.store.create_parent(run.name, tags | {PARENT_TAG: lab.parent}), "KILLED", "driver died")
    lab.log()
    lab.run(lab.cells[1], elsewhere)
    lab.log()
    made = [link for link in lab.links() if link.status == "FINISHED"]
    assert linked(made) == sorted(one.evaluated.run_id for one in lab.plan() if one.evaluated)
    replace(lab, parent=lab.store.create_parent("ablation other", {})).log()
    assert len(lab.links()) == 1 + 2 + 2


def test_a_run_that_two_variants_share_is_linked_under_the_other_name(lab: Lab) -> None:
    base = lab.cells[0]
    lab.run(base)
    lab.cells = [base, replace(base, variant="alike")]
    lab.log()
    lab.log()
    (link,) = lab.links()
    assert (link.tags["mgmrn.variant"], linked([link])) == ("alike", [lab.runs[-1].run_id])


@pytest.mark.parametrize("lab", ["split: tune\n" + TEXT], indirect=True)
def test_on_the_tune_split_figures_are_those_of_validation_images(lab: Lab) -> None:
    lab.run(lab.cells[0], lab.elsewhere(), gpu_seconds="2.5")
    _, compared = lab.log()
    (link,) = lab.links()
    assert link.metrics.keys() == {f"val/{key}" for key in FIGURES}
    assert link.tags["mgmrn.split"] == "tune" and {one.split for one in compared} == {"tune"}
    assert compared[0].cells["gpu_seconds"][0] == 2.5, "one run a cell"


def test_figures_over_seeds_are_those_of_the_comparison(lab: Lab) -> None:
    for cell in lab.cells:
        lab.run(cell, gpu_seconds="2.5")
    _, compared = lab.log()
    assert compared[0].cells["gpu_seconds"][0] == 5.0, "both runs of a cell"
    assert [one.metric for one in compared] == ["ausuc", *(key for key in FIGURES if key != "ausuc")]
    for comparison in compared:
        for entry in comparison.entries.itertuples():
            metrics = lab.variant(entry.variant).metrics
            found = [metrics[name] for name in (f"test/{comparison.metric}", f"std/{comparison.metric}", "seeds")]
            assert found == [entry.mean, entry.std, 3]
    shift = list(FIGURES).index("gzsl_h") / 100
    smooth, base = lab.variant("smooth"), lab.variant("base")
    assert (smooth.parent_run_id, smooth.status) == (lab.parent, "FINISHED")
    names = {"variant": "smooth", "benchmark": "TINY", "split": "final"}
    assert lab.store.client.get_run(smooth.run_id).data.params == names, "the UI groups by params"
    assert smooth.metrics["test/gzsl_h"] == pytest.approx(statistics.fmean(SCORES["smooth"]) + shift), "by hand"
    names = ["difference", "low", "high", "p_holm"]
    expected = compared[0].entries.set_index("variant").loc["smooth", names].tolist()
    assert [smooth.metrics[f"{name}/ausuc"] for name in names] == expected
    assert "difference/ausuc" not in base.metrics, "the base differs from nothing"
    mean, difference, config = smooth.tags[NOTE_TAG].split("\n\n")
    assert mean == "**AUSUC 76.0 ± 10.5 %** on `final`, 3 seeds"
    assert difference.startswith("+11.0 points against base (95 % interval +10.0 … +12.0, p ")
    assert config == "`small` on TINY with `loss.label_smoothing=0.1`"
    assert base.tags[NOTE_TAG] == "**AUSUC 65.0 ± 10.0 %** on `final`, 3 seeds\n\n`small` on TINY"
    note = lab.store.get(lab.parent).tags[NOTE_TAG]
    assert note.startswith("### AUSUC") and "| variant | TINY |" in note
    assert "| base (base) | 60.0 ± 10.0 (n = 3) |" in note
    many = description([compared[0]] * 100)
    assert many.endswith("More in the artifact comparison.csv.\n") and len(many) < NOTE_LIMIT + 100


def test_each_launch_adds_a_step_with_what_is_known(lab: Lab) -> None:
    lab.run(lab.cells[0])
    lab.run(lab.cells[1])
    lab.log()
    two = lab.variant("base").metrics["test/ausuc"]
    del lab.runs[2:]  # As for a run that is stale now.
    lab.log()
    (base,) = lab.store.own_runs("tags.`mgmrn.kind` = 'variant'")
    assert lab.store.logged_steps(lab.parent, SCORED) == lab.store.logged_steps(base.run_id, "test/ausuc") == {0, 1}
    assert lab.store.get(lab.parent).metrics[SCORED] == 1 and base.metrics["test/ausuc"] != two
