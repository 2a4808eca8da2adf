"""Run by `test_early_stop.py`: trials of many epochs, stopped at their first reports; prints what is left of them."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import ray
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors

from mgmrn.data.splits import load_tune
from pipeline.config.compose import load_experiment
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.train.cell import make_cell
from pipeline.train.cluster import ray_session
from pipeline.train.placement import Placement
from pipeline.train.tracked import Opening, ParentRun
from pipeline.trials.director import Site
from pipeline.trials.runner import run_trials
from pipeline.trials.trial import SealedPlan, TrialPlan, TrialReport, TuneSpec
from pipeline.where import Where

EPOCHS = 500
ALONE = Placement(workers=1, cpus_per_worker=1, gpus_per_worker=0)
OF_THE_CLUSTER = ("_AutoscalingCoordinatorActor",)
"""Ray Train has one in every cluster."""


class OneTrial:
    """Starts one trial and stops it as soon as it reports."""

    def __init__(self, plan: TrialPlan) -> None:
        storage = StoragePath.parse(Path.cwd())
        parent = ParentRun("stopped", Spool(storage / "launch"), {})
        self.site = Site(Opening(cast(Any, None), Where(storage=storage), "study", parent, ALONE), 1)
        self._plan: TrialPlan | None = plan
        self.reports: list[int] = []
        self.stopped_at = 0.0

    def next_trial(self) -> TrialPlan | None:
        plan, self._plan = self._plan, None
        return plan

    def reported(self, number: int, report: TrialReport) -> bool:
        self.reports.append(report.steps)
        self.stopped_at = time.monotonic()
        return True

    def ended(self, number: int, error: str | None) -> None:
        assert error is None, error

    def interrupted(self, reason: str) -> None:
        raise AssertionError("this run is not interrupted")


def stop_one(number: int) -> dict[str, Any]:
    """Stops a trial; how long its CPUs were missing, and whether its placement group still stands."""
    here = Path.cwd()
    composed = load_experiment("small.yaml", [f"schedule.epochs={EPOCHS}"])
    data = load_tune(here / "data", composed.config.benchmark)
    cell = make_cell(composed, number, data, None, f"t{number:03d}")
    spec = TuneSpec(**dict(cell.spec(here / "data", StoragePath(str(here / "runs")), 1)))
    plan = SealedPlan(number=number, runs=(spec,), placement=ALONE)
    director = OneTrial(plan)
    run_trials(cast(Any, director))
    total = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU", 0) < total and time.monotonic() < director.stopped_at + 30:
        time.sleep(0.1)
    return {
        "reports": director.reports,
        "is_free": ray.available_resources().get("CPU", 0) == total,
        "seconds_until_free": time.monotonic() - director.stopped_at,
        "groups": [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"],
    }


def kill_dashboard() -> None:
    """Ray's own cleaner of placement groups asks it whether a run is still on."""
    killed = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # Some are over already.
            if "dashboard.py" in " ".join(process.cmdline()):
                process.kill()
                killed += 1
    assert killed == 1, killed


def main() -> None:
    with ray_session(None):
        first = stop_one(0)
        alive = [actor.class_name for actor in list_actors() if actor.state != "DEAD"]
        first["actors"] = [name for name in alive if name not in OF_THE_CLUSTER]
        kill_dashboard()
        second = stop_one(1)
    print(json.dumps([first, second]))


main()
