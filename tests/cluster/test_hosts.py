"""Runs, a grid and a search on a head and two workers on one machine go on though hosts are lost, cut off and replaced."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.cluster.site import Site
from tests.ray.command import wait_until
from tests.ray.small import long_epochs
from tests.ray.tracked import assert_epochs_are_logged_once, children_of, runs_of
from tests.recovery import time_recoveries, time_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.long]

EPOCHS = 6
MANY_EPOCHS = 40
RUN = "tiny*"


def length(epochs: int) -> tuple[str, ...]:
    return ("--split", "tune", "--set", f"schedule.epochs={epochs}", "--cpus-per-worker", "1")


def test_a_run_over_two_hosts_ends_with_every_epoch_once(site: Site) -> None:
    """In its second epoch one host is lost and another joins; in its fourth one is cut off for a while."""
    job = site.submit("train", str(site.experiment), *length(EPOCHS), *long_epochs(80), "--workers", "2")
    wait_until(lambda: 1 in site.epochs_noted(RUN), "the first epoch was noted", 300, job)
    assert (len(site.ranks("w1")), len(site.ranks("w2"))) == (1, 1), "one rank on each host"
    seen = len(site.epochs_noted(RUN))
    site.hosts.kill("w2")
    site.hosts.add()
    time_recovery("train: host killed and replaced", lambda: len(site.epochs_noted(RUN)) > seen, job)
    wait_until(lambda: 3 in site.epochs_noted(RUN), "the third epoch was noted", 300, job)
    assert (len(site.ranks("w1")), len(site.ranks("w3"))) == (1, 1), "the new host has taken the place of the lost one"
    site.hosts.namespaces.cut("w1")
    wait_until(lambda: "w1" not in site.hosts.in_ray(), "Ray gave the host up")
    assert EPOCHS not in site.epochs_noted(RUN), "the epochs are too short to lose a host in one"
    seen = len(site.epochs_noted(RUN))
    site.hosts.namespaces.heal("w1")
    time_recovery("train: host cut off and healed", lambda: len(site.epochs_noted(RUN)) > seen, job)
    job.end()
    (run,) = children_of(site.client)
    assert run.info.status == "FINISHED" and run.data.tags["mgmrn.world_size"] == "2"
    assert run.data.tags["mgmrn.ray_submission_id"] in job.errors_so_far()
    assert_epochs_are_logged_once(site.client, run, EPOCHS, "train/total", "val/ausuc", "perf/epoch_s")
    # Each time the run went on from its latest checkpoint, which a crash within a poll of its report may cost.
    noted = site.epochs_noted(RUN)
    assert set(noted) == set(range(1, EPOCHS + 1)) and len(noted) <= EPOCHS + 2, noted
    assert sorted(site.hosts.in_ray()) == ["head", "w1", "w3"], "the host that was cut off has joined again by itself"


def worker_group(site: Site) -> str:
    """Changes when rank 0 of another group of workers begins; it has not read a picture yet then."""
    (note,) = site.shared.glob(f"runs/{RUN}/placement_group")
    return note.read_text()


def test_a_run_goes_on_with_one_host_and_grows_to_two_again(site: Site) -> None:
    """Batches and schedule do not depend on the number of workers: `tests/unit/test_data_parallel.py`.

    The run has far more epochs than the hosts need to change.
    """
    job = site.submit("train", str(site.experiment), *length(MANY_EPOCHS), *long_epochs(40), "--workers", "1..2")
    wait_until(lambda: len(site.epochs_noted(RUN)) >= 2, "two epochs on two hosts", 400, job)
    with_two = worker_group(site)
    site.hosts.kill("w2")
    time_recovery("train --workers 1..2: host lost", lambda: worker_group(site) != with_two, job)
    with_one = worker_group(site)
    wait_until(lambda: 1 in site.workers_noted(RUN), "an epoch on one host", 400, job)
    site.hosts.add()
    time_recovery("train --workers 1..2: host joins", lambda: worker_group(site) != with_one, job)
    job.end()
    assert "Traceback" not in job.errors_so_far()
    (run,) = children_of(site.client)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["mgmrn.world_size"], run.data.tags["mgmrn.attempt"]) == ("1..2", "1")
    sizes = [metric.value for metric in site.client.get_metric_history(run.info.run_id, "perf/world_size")]
    assert re.fullmatch("2{2,}1+2+", "".join(f"{size:.0f}" for size in sizes)), sizes
    tracked = ("train/total", "train/lr", "val/ausuc", "perf/world_size")
    assert_epochs_are_logged_once(site.client, run, MANY_EPOCHS, *tracked)


def test_a_launch_waits_for_a_host_that_is_not_up_yet(site: Site) -> None:
    arguments = (str(site.experiment), *length(1), "--workers", "3")
    refused = site.submit("train", *arguments)
    assert refused.process.wait(300) != 0 and "has room for 2 such workers" in refused.errors_so_far()
    job = site.submit("train", *arguments, "--wait-for-hosts", "5m")
    wait_until(lambda: "waiting for hosts with room for 3" in job.errors_so_far(), "the launch waits", 300, job)
    site.hosts.add()
    job.end()
    (run,) = children_of(site.client)
    assert (run.info.status, run.data.tags["mgmrn.world_size"]) == ("FINISHED", "3")


TRIALS = 6
"""As in `space.yaml`."""

PAGES = {"ablate": "mgmrn/ablation/grid", "search": "mgmrn/search/space"}
FOLDERS = {"ablate": "ablation/*", "search": "search/*/*"}


def runs_and_parent(site: Site, verb: str) -> tuple[list[Run], Run]:
    """Runs of cells or trials, and their parent."""
    found = runs_of(site.client, PAGES[verb])
    (parent,) = (run for run in found if run.data.tags["mgmrn.kind"] in ("ablation", "search"))
    return [run for run in found if run.data.tags["mgmrn.kind"] == "run"], parent


def test_a_grid_and_a_search_are_ended_after_the_host_of_their_drivers_was_lost(site: Site) -> None:
    """The head, on which both drivers are, dies under them."""
    alone = ("--concurrency", "1", "--cpus-per-worker", "1")
    study = ("--study-storage", f"sqlite:///{site.shared / 'studies.db'}")
    commands = {
        "ablate": ("ablate", str(site.shared / "grid.yaml"), *alone),
        "search": ("search", str(site.shared / "space.yaml"), *alone, *study),
    }
    for name in ("grid.yaml", "space.yaml"):
        text = Path(__file__).with_name(name).read_text()
        (site.shared / name).write_text(text.replace("small.yaml", str(site.experiment)))
    before = {verb: site.submit(*command) for verb, command in commands.items()}
    for verb, job in before.items():
        wait_until(partial(site.epochs_noted, FOLDERS[verb]), f"an epoch of {verb}", 300, job)
    site.hosts.kill("head")
    for job in before.values():
        job.leave()
    left = [run for verb in PAGES for run in runs_and_parent(site, verb)[0] if run.info.status == "RUNNING"]
    assert left, "a driver that is lost cannot say that it ended"
    site.hosts.replace_head()
    wait_until(lambda: site.hosts.in_ray() == site.hosts.names, "the workers have joined the new head")

    after = [site.submit(*commands["ablate"]), site.submit(*commands["search"], "--resume")]
    noted = {verb: len(site.epochs_noted(pattern)) for verb, pattern in FOLDERS.items()}

    def goes_on(verb: str) -> bool:
        return len(site.epochs_noted(FOLDERS[verb])) > noted[verb]

    time_recoveries({f"{verb}: host of the driver killed and replaced": partial(goes_on, verb) for verb in PAGES})
    for job in after:
        job.end()
    names, attempts = {}, {}
    for verb in PAGES:
        runs, parent = runs_and_parent(site, verb)
        names[verb] = Counter((run.data.tags["mgmrn.variant"], run.data.tags["mgmrn.split"]) for run in runs)
        attempts |= {run.info.run_id: run.data.tags["mgmrn.attempt"] for run in runs}
        assert {run.info.status for run in (*runs, parent)} == {"FINISHED"}
        assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
        for run in runs:
            assert_epochs_are_logged_once(site.client, run, 0)
    variants = ("base", "smooth", "smoother", "lighter")
    assert names["ablate"] == {(variant, split): 1 for variant in variants for split in ("tune", "final")}
    trials = [name for name, _ in names["search"].elements() if name.startswith("t0")]
    assert sorted(trials) == [f"t{number:03d}" for number in range(TRIALS)]
    # One may have come to its end just before, without having told the tracking server.
    assert "2" in {attempts[run.info.run_id] for run in left}
