"""A full disk, a quota and a folder that may not be written to are sentences; other errors of a disk stay what they are."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.tune.schedulers import TrialScheduler

from mgmrn.checkpoint import save_atomically
from mgmrn.errors import ResourceError
from pipeline.cli.app import main
from pipeline.train.messages import Failure, record_failure, recorded_failure, reserve_room
from pipeline.train.placement import Placement
from pipeline.train.storage import StorageError, check_writable, explained
from pipeline.trials.plan import TrialPlan, TrialReport
from pipeline.trials.runner import _Proposals, _Stops
from tests.ray.small import SEARCH, write_small
from tests.tmpfs import TMPFS, remounted, small_disk

RUNS = Path("/shared/runs")
FULL = "the storage folder /shared/runs is full (make room there; the same command goes on from the last checkpoint)"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", megabytes=1) as folder:
        yield folder


def fill(folder: Path) -> Path:
    """Writes until there is no room."""
    filler = folder / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**14))
    return filler


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (
            OSError(errno.EROFS, "Read-only file system", "/shared/runs/x/spool.jsonl"),
            "the storage folder /shared/runs cannot be written to: Read-only file system (make it writable, "
            "or name another with --storage; the same command goes on from the last checkpoint)",
        ),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(error: OSError, sentence: str) -> None:
    with pytest.raises(StorageError) as caught, explained(RUNS):
        raise error
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied", "/elsewhere/file")],
)
def test_another_error_is_not_blamed_on_the_storage(error: OSError) -> None:
    with pytest.raises(type(error)) as caught, explained(RUNS):
        raise error
    assert caught.value is error


def test_a_failure_of_the_storage_ends_the_whole_launch() -> None:
    failure = Failure("storage", "full", hint="make room")
    assert isinstance(failure.mistake, StorageError) and failure.of_storage is not None
    assert Failure("cannot-run-here", "too small").of_storage is None
    assert isinstance(StorageError("full"), ResourceError), "answered with exit code 3"


@TMPFS
def test_a_probe_finds_a_full_disk_and_leaves_nothing(disk: Path) -> None:
    check_writable(disk / "runs")
    assert list(disk.iterdir()) == []
    filler = fill(disk)
    with pytest.raises(StorageError, match="is full"):
        check_writable(disk / "runs")
    assert list(disk.iterdir()) == [filler]


@TMPFS
def test_a_failure_can_be_noted_on_a_full_disk_where_room_was_reserved(disk: Path) -> None:
    """Without the room the worker raises what it met instead; else its run would look as if it had come to its end."""
    note, other = disk / "failure.json", disk / "other.json"
    reserve_room(note)
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        record_failure(other, Failure("storage", "full"))
    record_failure(note, Failure("storage", "full"))
    assert recorded_failure(note) == Failure("storage", "full")


@TMPFS
def test_a_checkpoint_that_does_not_fit_says_so_and_leaves_nothing(disk: Path) -> None:
    """Torch's own writer says that positions in the file differ."""
    with pytest.raises(OSError) as caught:
        save_atomically({"weights": torch.zeros(2**20)}, disk / "state.pt")
    assert caught.value.errno == errno.ENOSPC
    assert list(disk.iterdir()) == []


GRID = """\
# Question: none.
base: small.yaml
variants:
  smooth: {loss.label_smoothing: 0.1}
seeds: [0]
"""


@TMPFS
def test_a_read_only_storage_is_refused_before_ray_is_started(
    disk: Path, tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray must not be started")

    for module in ("train", "search", "ablation"):
        monkeypatch.setattr(f"pipeline.{module}.launch.ray_session", never)
    monkeypatch.chdir(tmp_path)
    experiment, *data = write_small(tmp_path)
    (tmp_path / "tiny-search.yaml").write_text(SEARCH)
    (tmp_path / "tiny-grid.yaml").write_text(GRID)
    (tmp_path / "mlflow.db").write_bytes(tables.read_bytes())
    places = ("--storage", str(disk), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--json")
    with remounted(disk, "ro"):
        for verb, file in (("train", experiment), ("search", "tiny-search.yaml"), ("ablate", "tiny-grid.yaml")):
            code = main([verb, file, *data, *places])
            answer = json.loads(capsys.readouterr().out)
            assert code == 3, answer
            assert answer["error"] == f"the storage folder {disk} cannot be written to: {os.strerror(errno.EROFS)}"
            assert "--storage" in answer["hint"]
    assert list(disk.iterdir()) == []


class DeafDirector:
    """A director that must hear of no trial's failure."""

    def reported(self, number: int, report: TrialReport) -> bool:
        raise AssertionError("a full disk is no failure of the trial that met it first")


def test_a_full_storage_ends_a_search_without_failing_a_trial() -> None:
    """Grids run through the same engine. What was open is ended as interrupted, so that the next call goes on with it."""
    failure = {key: str(value) for key, value in asdict(Failure("storage", "full", hint="make room")).items()}
    report = TrialReport(run=0, steps=1, failure=failure)
    with ThreadPoolExecutor(1) as leftovers:
        proposals = _Proposals(DeafDirector(), leftovers)  # type: ignore[arg-type]
        proposals.plans["one"] = TrialPlan(number=0, runs=(), placement=Placement(1, 1, 0))
        answer = _Stops(proposals).on_trial_result(None, SimpleNamespace(trial_id="one"), report.to_tune())  # type: ignore[arg-type]
    assert answer == TrialScheduler.STOP
    assert isinstance(proposals.error, StorageError) and str(proposals.error) == "full (make room)"
