"""Run by `test_early_stop.py`: one trial of many epochs, stopped at its first report; prints what is left of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ray
from ray.util.state import list_actors, list_placement_groups

from mgmrn.data.splits import load_tune
from pipeline.compose import load_experiment
from pipeline.search.plan import Pool, TrialPlan, TrialReport, TuneSpec
from pipeline.search.runner import run_trials
from pipeline.train.cell import make_cell
from pipeline.train.cluster import ray_session

EPOCHS = 500
OF_THE_CLUSTER = ("_AutoscalingCoordinatorActor",)
"""Ray Train has one in every cluster."""


class OneTrial:
    """Starts one trial and stops it as soon as it reports."""

    def __init__(self, plan: TrialPlan) -> None:
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

    def interrupted(self) -> None:
        raise AssertionError("nobody interrupts this")


def main() -> None:
    here = Path.cwd()
    composed = load_experiment("small.yaml", [f"schedule.epochs={EPOCHS}"])
    data = load_tune(here / "data", composed.config.benchmark)
    cell = make_cell(composed, 0, data, None, "t000")
    spec = TuneSpec(**dict(cell.spec(here / "data", here / "runs", 1)))
    plan = TrialPlan(number=0, runs=(spec,), workers=1, cpus_per_worker=1, gpus_per_worker=0)
    with ray_session(None, dashboard=True):
        total = ray.cluster_resources()["CPU"]
        director = OneTrial(plan)
        run_trials(director, Pool(1, 1, 1, 0), here / "tune")
        while ray.available_resources().get("CPU", 0) < total and time.monotonic() < director.stopped_at + 90:
            time.sleep(0.1)
        seconds = time.monotonic() - director.stopped_at
        is_free = ray.available_resources().get("CPU", 0) == total
        groups = [group.state for group in list_placement_groups() if group.state != "REMOVED"]
        alive = [actor.class_name for actor in list_actors() if actor.state != "DEAD"]
    found = {
        "reports": director.reports,
        "is_free": is_free,
        "seconds_until_free": seconds,
        "placement_groups": groups,
        "actors": [name for name in alive if name not in OF_THE_CLUSTER],
    }
    print(json.dumps(found))


main()
