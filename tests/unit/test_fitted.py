"""What a run came to is read off its storage: the epoch that counts, whole, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgmrn.data.splits import load_tune
from mgmrn.protocol import evaluate_split
from pipeline.config.compose import load_experiment
from pipeline.spool import Spool
from pipeline.train.cell import make_cell
from pipeline.train.checkpoints import kept_checkpoints, new_checkpoint
from pipeline.train.fit import Fitted, fit
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import EVALUATION_FILE, RunSpec
from tests.ray.small import write_small

AUSUC = {1: 0.2, 2: 0.4, 3: 0.3}


class Trainer:
    """Takes Ray's place: all epochs were trained before."""

    def __init__(self, train_loop: Any, **settings: Any) -> None:
        pass

    def fit(self) -> None:
        pass


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A run of three epochs, of which the second counts."""
    monkeypatch.setattr("pipeline.train.fit.DataParallelTrainer", Trainer)
    write_small(tmp_path)
    composed = load_experiment(str(tmp_path / "small.yaml"), ["schedule.epochs=3"])
    data = load_tune(tmp_path / "data", composed.config.benchmark)
    spec = make_cell(composed, 0, data, None, "mgmrn").spec(tmp_path / "data", tmp_path / "runs", 1)
    scores = np.random.default_rng(0).random((len(data.seen) + len(data.unseen), len(data.classes.names)))
    for epoch, value in AUSUC.items():
        with new_checkpoint(spec.run_folder, epoch) as folder:
            evaluate_split(data, scores.astype(np.float32), None).save(folder / EVALUATION_FILE)
        Spool(spec.spool_file).append(epoch, {"epoch": epoch, "val/ausuc": value})
    return spec


def fitted(spec: RunSpec) -> Fitted | Failure:
    return fit(spec, Placement(1, 1, 0))


def damage(spec: RunSpec, epoch: int) -> Path:
    """Flips one bit."""
    (folder,) = (one.folder for one in kept_checkpoints(spec.run_folder) if one.epoch == epoch)
    file = folder / EVALUATION_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return folder


def test_the_best_epoch_counts(spec: RunSpec) -> None:
    ended = fitted(spec)
    assert isinstance(ended, Fitted)
    assert (ended.epoch, ended.metrics["val/ausuc"]) == (2, 0.4)
    assert ended.checkpoint.name == "checkpoint_000002_1"


def test_workers_that_end_before_the_last_epoch_make_no_result(spec: RunSpec) -> None:
    """As if a worker could not leave a note of its failure."""
    longer = spec.config.model_copy(update={"schedule": spec.config.schedule.model_copy(update={"epochs": 4})})
    ended = fitted(spec.model_copy(update={"config": longer}))
    assert isinstance(ended, Failure) and ended.reason == "workers-lost"


@pytest.mark.parametrize("epoch", [1, 3])
def test_damage_to_another_epoch_is_nobody_s_business(spec: RunSpec, epoch: int) -> None:
    damage(spec, epoch)
    assert isinstance(fitted(spec), Fitted)


def test_a_damaged_checkpoint_of_the_epoch_that_counts_fails_the_run(spec: RunSpec) -> None:
    damage(spec, 2)
    ended = fitted(spec)
    assert isinstance(ended, Failure)
    assert ended.reason == "damaged-checkpoint"
    assert ended.message == (
        "the checkpoint of epoch 2, which counts, was damaged after it was written: "
        "evaluation.npz is not as it was written"
    )
    assert ended.where == str(spec.run_folder) and "the same command trains the run again" in ended.hint
    assert ended.mistake is None, "the launch goes on, and answers that a run failed"


def test_where_an_epoch_was_trained_again_its_whole_attempt_counts(spec: RunSpec) -> None:
    folder = damage(spec, 2)
    (whole,) = (one.folder for one in kept_checkpoints(spec.run_folder) if one.epoch == 3)
    with new_checkpoint(spec.run_folder, 2) as again:
        (again / EVALUATION_FILE).write_bytes((whole / EVALUATION_FILE).read_bytes())
    ended = fitted(spec)
    assert isinstance(ended, Fitted)
    assert ended.checkpoint.name == "checkpoint_000002_2" and folder.exists()
