"""Three hosts on one machine, a head and two workers of one CPU each: a run over both goes on though one is lost and another cut off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.site import Job, Site, a_site
from tests.ray.command import wait_until
from tests.ray.small import long_epochs
from tests.recovery import time_recovery

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.long]

EPOCHS = 5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site"), workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def trained(site: Site) -> Job:
    """A run of two ranks. In its second epoch one host is lost and another joins; in its fourth one is cut off for a while."""
    job = site.submit(
        *("train", str(site.experiment), "--split", "tune", "--workers", "2"),
        *("--set", f"schedule.epochs={EPOCHS}", *long_epochs(80)),
    )
    wait_until(lambda: 1 in site.epochs_noted("syn*"), "the first epoch was noted", 300, job)
    assert (len(site.ranks("w1")), len(site.ranks("w2"))) == (1, 1), "one rank on each host"
    seen = len(site.epochs_noted("syn*"))
    site.hosts.kill("w2")
    site.hosts.add()
    time_recovery("train: host killed and replaced", lambda: len(site.epochs_noted("syn*")) > seen, job)
    wait_until(lambda: 3 in site.epochs_noted("syn*"), "the third epoch was noted", 300, job)
    assert (len(site.ranks("w1")), len(site.ranks("w3"))) == (1, 1), "the new host has taken the place of the lost one"
    site.hosts.namespaces.cut("w1")
    wait_until(lambda: "w1" not in site.hosts.in_ray(), "Ray gave the host up")
    assert EPOCHS not in site.epochs_noted("syn*"), "the epochs are too short to lose a host in one"
    seen = len(site.epochs_noted("syn*"))
    site.hosts.namespaces.heal("w1")
    time_recovery("train: host cut off and healed", lambda: len(site.epochs_noted("syn*")) > seen, job)
    job.end()
    return job


def test_a_run_over_two_hosts_ends_with_every_epoch_once(site: Site, trained: Job) -> None:
    (run,) = (one for one in site.runs("mgmrn/train") if "mlflow.parentRunId" in one.data.tags)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mgmrn.world_size"] == "2"
    assert run.data.tags["mgmrn.ray_submission_id"] in trained.log()
    steps = site.steps(run)
    for key in ("train/total", "val/ausuc", "perf/epoch_s"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key
    assert all(len(set(found)) == len(found) for found in steps.values())


def test_no_finished_epoch_was_trained_again(site: Site, trained: Job) -> None:
    """Each time the run went on from its latest checkpoint, which a crash within a poll of its report may cost."""
    noted = site.epochs_noted("syn*")
    assert sorted(set(noted)) == list(range(1, EPOCHS + 1))
    assert len(noted) <= EPOCHS + 2, noted
    assert sorted(site.hosts.in_ray()) == ["head", "w1", "w3"], "the host that was cut off has joined again by itself"
