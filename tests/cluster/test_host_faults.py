"""A grid and a search on three hosts, of which the one that holds their drivers is lost: submitted again, each is brought to its end.

Both are on at once, on a worker of one CPU each, since every run costs some ten seconds of a core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from mlflow.entities import Run

from tests.cluster.site import Job, Site, a_site
from tests.ray.command import wait_until
from tests.recovery import time_recoveries

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]

GRID = """\
# Question: does the machinery work?
base: {base}
fixed: {{sampling.kind: episodic, sampling.ways: 2, sampling.shots: 2, sampling.episodes: 41}}
variants:
  smooth: {{loss.label_smoothing: 0.1}}
  smoother: {{loss.label_smoothing: 0.2}}
  lighter: {{loss.regression: 0.01}}
seeds: [0]
"""
TRIALS = 6
SEARCH = """\
# Question: does the machinery work? Cost: seconds.
base: {base}
fixed: {{sampling.kind: episodic, sampling.ways: 2, sampling.shots: 2, sampling.episodes: 40}}
space:
  loss.regression: {{kind: float, low: 0.01, high: 1, log: true}}
sampler: {{name: random, seed: 1}}
scheduler: {{name: none}}
trials: {trials}
"""


GRID_PAGE, SEARCH_PAGE = "mgmrn/ablation/grid", "mgmrn/search/space"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site"), workers=2) as made:
        (made.shared / "grid.yaml").write_text(GRID.format(base=made.experiment))
        (made.shared / "space.yaml").write_text(SEARCH.format(base=made.experiment, trials=TRIALS))
        yield made


@dataclass(frozen=True)
class Resubmitted:
    """A grid and a search that were on when the host of their drivers was lost, and were then submitted again."""

    grid: Job
    search: Job
    left: tuple[Run, ...]
    """Runs of trials and cells, as the drivers left them."""


@pytest.fixture(scope="module")
def resubmitted(site: Site) -> Resubmitted:
    """One worker's CPU for each of the two, side by side; the head, on which both drivers are, dies under them."""
    grid = ("ablate", str(site.shared / "grid.yaml"), "--concurrency", "1", "--cpus-per-worker", "1")
    study = ("--study-storage", f"sqlite:///{site.shared / 'studies.db'}")
    search = ("search", str(site.shared / "space.yaml"), "--concurrency", "1", "--cpus-per-worker", "1", *study)
    before = [site.submit(*grid), site.submit(*search)]
    for job, pattern in zip(before, ("ablation/*", "search/*/*"), strict=True):
        wait_until(lambda pattern=pattern: bool(site.epochs_noted(pattern)), f"an epoch of {pattern}", 300, job)
    site.hosts.kill("head")
    for job in before:
        job.leave()
    left = tuple(run for page in (GRID_PAGE, SEARCH_PAGE) for run in site.runs(page) if is_of_a_config(run))
    assert "RUNNING" in {run.info.status for run in left}, "a driver that is lost cannot say that it ended"
    site.hosts.replace_head()
    wait_until(lambda: site.hosts.in_ray() == site.hosts.names, "the workers have joined the new head")
    after = Resubmitted(site.submit(*grid), site.submit(*search, "--resume"), left)
    noted = {pattern: len(site.epochs_noted(pattern)) for pattern in ("ablation/*", "search/*/*")}
    time_recoveries(
        {
            f"{verb}: host of the driver killed and replaced": lambda pattern=pattern: (
                len(site.epochs_noted(pattern)) > noted[pattern]
            )
            for verb, pattern in zip(("ablate", "search"), noted, strict=True)
        }
    )
    after.grid.end()
    after.search.end()
    return after


def is_of_a_config(run: Run) -> bool:
    return bool(run.data.tags["mgmrn.kind"] == "run")


def assert_each_is_tracked_once(site: Site, runs: list[Run], parent: Run) -> None:
    assert {run.info.status for run in (*runs, parent)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    for run in runs:
        steps = site.steps(run, "train/total", "val/ausuc", "test/ausuc")
        assert steps["train/total"] == sorted(set(steps["train/total"])), "no step is logged twice"
        assert all(len(set(found)) == len(found) for found in steps.values())


def test_a_grid_is_ended_after_the_host_of_its_driver_was_lost(site: Site, resubmitted: Resubmitted) -> None:
    runs = site.runs(GRID_PAGE)
    (parent,) = (run for run in runs if run.data.tags["mgmrn.kind"] == "ablation")
    cells = [run for run in runs if is_of_a_config(run)]
    assert Counter((run.data.tags["mgmrn.variant"], run.data.tags["mgmrn.split"]) for run in cells) == {
        (variant, split): 1 for variant in ("base", "smooth", "smoother", "lighter") for split in ("tune", "final")
    }
    assert_each_is_tracked_once(site, cells, parent)


def test_a_search_is_ended_after_the_host_of_its_driver_was_lost(site: Site, resubmitted: Resubmitted) -> None:
    runs = site.runs(SEARCH_PAGE)
    (parent,) = (run for run in runs if run.data.tags["mgmrn.kind"] == "search")
    trials = [run for run in runs if run.data.tags.get("mgmrn.variant", "").startswith("t0")]
    assert sorted(run.data.tags["mgmrn.variant"] for run in trials) == [f"t{number:03d}" for number in range(TRIALS)]
    assert_each_is_tracked_once(site, [run for run in runs if is_of_a_config(run)], parent)


def test_what_the_lost_drivers_had_begun_was_gone_on_with(site: Site, resubmitted: Resubmitted) -> None:
    ended = {run.info.run_id: run for page in (GRID_PAGE, SEARCH_PAGE) for run in site.runs(page)}
    cut_off = [ended[run.info.run_id] for run in resubmitted.left if run.info.status == "RUNNING"]
    # One may have come to its end just before, without having told the tracking server.
    assert "2" in {run.data.tags["mgmrn.attempt"] for run in cut_off}
