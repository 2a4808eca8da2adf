"""A grid on a tiny benchmark whose driver is killed, and then a process of a trial; the second call finishes it, and nothing is left to run.

All tests look at the same grid, since each run under Ray costs some twenty seconds of a core.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.ray.command import Answer, Place, a_place, wait_until
from tests.ray.small import write_small
from tests.ray.tracked import client_of, files_of, steps_of
from tests.recovery import time_recovery

pytestmark = pytest.mark.ray

GRID = Path(__file__).with_name("tiny-grid.yaml").read_text()


def write_grid(place: Place) -> tuple[str, ...]:
    """Writes data, base and grid; returns what names them to a verb."""
    _, *data = write_small(place.folder)
    (place.folder / "tiny-grid.yaml").write_text(GRID)
    return ("tiny-grid.yaml", *data, "--json")


@dataclass(frozen=True)
class Ablated:
    place: Place
    grid: tuple[str, ...]
    answer: Answer
    """Answer of the call after the death of the driver."""
    client: MlflowClient

    def runs(self, kind: str) -> list[Run]:
        experiments = [one.experiment_id for one in self.client.search_experiments() if "ablation" in one.name]
        found = self.client.search_runs(experiments, f"tags.`mgmrn.kind` = '{kind}'")
        return list(found)


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ablated]:
    with a_place(tmp_path_factory.mktemp("ablation") / "here") as place:
        grid = write_grid(place)
        running = place.start("ablate", *grid, "--concurrency", "1")
        wait_until(lambda: bool(checkpoints(place)), "a first checkpoint", 300, running)
        running.kill()
        place.kill_all()
        again = place.start("ablate", *grid, "--concurrency", "2")
        seen = checkpoints(place)
        time_recovery("ablate: driver killed", lambda: bool(checkpoints(place) - seen), again)
        place.training_workers()[0].kill()
        answer = again.answer(timeout=590)
        assert answer.code == 0, answer.err
        yield Ablated(place, grid, answer, client_of(place))


def checkpoints(place: Place) -> set[Path]:
    return set((place.folder / ".mgmrn" / "runs" / "ablation").glob("*/checkpoint_*"))


@pytest.mark.timeout(1200)
def test_after_a_killed_driver_and_a_killed_trial_nothing_is_run_twice(ablated: Ablated) -> None:
    runs = ablated.runs("run")
    assert Counter((run.data.tags["mgmrn.variant"], run.data.tags["mgmrn.split"]) for run in runs) == {
        (variant, split): 1 for variant in ("base", "smooth") for split in ("tune", "final")
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert all(len(set(steps)) == len(steps) for steps in steps_of(ablated.client, run).values())
    (parent,) = ablated.runs("ablation")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}


def test_a_second_launch_starts_nothing(ablated: Ablated) -> None:
    sessions = ablated.place.ray_sessions
    again = ablated.place.run("ablate", *ablated.grid)
    assert again.code == 0, again.err
    assert (again.json["status"], again.json["launched"]) == ("cached", 0)
    assert again.json["totals"] == {"cached": 2}
    assert ablated.place.ray_sessions == sessions


def test_tables_and_the_page_are_artifacts_of_the_parent_with_the_figures_of_its_runs(ablated: Ablated) -> None:
    made = ablated.place.run("report", *ablated.grid)
    assert made.code == 0, made.err
    assert list(made.json) == ["report", "parent_run_id", "runs"], "scripts read these keys"
    finals = {run.info.run_id: run.data for run in ablated.runs("run") if run.data.tags["mgmrn.split"] == "final"}
    parent = ablated.client.get_run(ablated.answer.json["parent_run_id"])
    assert (set(made.json["runs"]), made.json["parent_run_id"]) == (finals.keys(), parent.info.run_id)
    page = f"report/{Path(made.json['report']).name}"
    assert {page, "comparison.csv", "comparison.json"} <= files_of(ablated.client, parent)
    assert "Question: " in ablated.client.get_experiment(parent.info.experiment_id).tags["mlflow.note.content"]
    variants = {run.data.tags["mgmrn.variant"]: run.data.metrics for run in ablated.runs("variant")}
    for data in finals.values():
        mean = variants[data.tags["mgmrn.variant"]]["test/gzsl_h"]
        assert mean == pytest.approx(data.metrics["test/gzsl_h"])


@pytest.mark.long
def test_touched_model_code_makes_cells_stale_which_are_run_again_when_asked_for_within_the_budget(
    ablated: Ablated,
) -> None:
    for run in ablated.runs("run"):
        if run.data.tags["mgmrn.variant"] == "smooth":
            ablated.client.set_tag(run.info.run_id, "mgmrn.code_digest", "of-other-code")
    before = {run.info.run_id for run in ablated.runs("run")}
    unasked = ablated.place.run("ablate", *ablated.grid)
    assert unasked.json["launched"] == 0, "stale cells run only when they are asked for"
    refused = ablated.place.run("ablate", *ablated.grid, "--mode", "retry", "--budget-hours", "0.0001")
    assert refused.code == 3 and "more than the budget" in refused.json["error"]
    assert {run.info.run_id for run in ablated.runs("run")} == before
    again = ablated.place.run("ablate", *ablated.grid, "--mode", "retry")
    assert again.code == 0, again.err
    assert (again.json["launched"], again.json["totals"]) == (1, {"cached": 2})
    new = [run.data.tags for run in ablated.runs("run") if run.info.run_id not in before]
    found = sorted((tags["mgmrn.variant"], tags["mgmrn.split"]) for tags in new)
    assert found == [("smooth", "final"), ("smooth", "tune")]
