"""A run's result is read from its storage: the whole checkpoint of its best epoch, or a failure."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from mgmrn.data.splits import load_tune
from mgmrn.protocol import evaluate_split
from pipeline.config.compose import load_experiment
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.train.cell import make_cell
from pipeline.train.checkpoints import kept_checkpoints, new_checkpoint
from pipeline.train.fit import Fitted, fit
from pipeline.train.messages import Failure
from pipeline.train.placement import Placement
from pipeline.train.spec import EVALUATION_FILE, RunSpec
from tests.ray.small import write_small

AUSUC = {1: 0.2, 2: 0.4, 3: 0.3}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A run of three epochs, of which the second is the best."""
    monkeypatch.setattr("pipeline.train.fit.DataParallelTrainer", Mock())
    write_small(tmp_path)
    composed = load_experiment(str(tmp_path / "small.yaml"), ["schedule.epochs=3"])
    data = load_tune(tmp_path / "data", composed.config.benchmark)
    spec = make_cell(composed, 0, data, None, "mgmrn").spec(tmp_path / "data", StoragePath.parse(tmp_path / "runs"), 1)
    scores = np.random.default_rng(0).random((len(data.seen) + len(data.unseen), len(data.classes.names)))
    for epoch, value in AUSUC.items():
        with new_checkpoint(spec.run_folder, epoch) as folder:
            evaluate_split(data, scores.astype(np.float32), None).save(folder / EVALUATION_FILE)
        Spool(spec.run_folder).append(epoch, {"epoch": epoch, "val/ausuc": value})
    return spec


def fitted(spec: RunSpec) -> Fitted | Failure:
    *_, outcome = fit(spec, Placement(2, 1, 0))
    assert isinstance(outcome, Fitted | Failure)
    return outcome


def evaluation(spec: RunSpec, epoch: int) -> Path:
    (folder,) = (one.folder for one in kept_checkpoints(spec.run_folder) if one.epoch == epoch)
    return Path(folder.address) / EVALUATION_FILE


def flip_a_bit(spec: RunSpec, epoch: int) -> None:
    content = bytearray(evaluation(spec, epoch).read_bytes())
    content[len(content) // 2] ^= 1
    evaluation(spec, epoch).write_bytes(content)


def test_the_best_epoch_counts_and_damage_to_others_does_not(spec: RunSpec) -> None:
    for epoch in (1, 3):
        flip_a_bit(spec, epoch)
    ended = fitted(spec)
    assert isinstance(ended, Fitted)
    assert (ended.epoch, ended.metrics["val/ausuc"]) == (2, 0.4)
    assert ended.checkpoint.name == "checkpoint_000002_1"


def test_workers_that_end_before_the_last_epoch_make_no_result(spec: RunSpec) -> None:
    longer = spec.config.model_copy(update={"schedule": spec.config.schedule.model_copy(update={"epochs": 4})})
    ended = fitted(spec.model_copy(update={"config": longer}))
    assert isinstance(ended, Failure) and ended.reason == "workers-lost"


def test_a_damaged_checkpoint_of_the_epoch_that_counts_fails_the_run(spec: RunSpec) -> None:
    flip_a_bit(spec, 2)
    ended = fitted(spec)
    assert isinstance(ended, Failure) and ended.reason == "damaged-checkpoint"
    start = "the checkpoint of epoch 2, which counts, was damaged after it was written: "
    assert ended.message == start + "evaluation.npz is not as it was written"
    assert ended.where == str(spec.run_folder) and "the same command trains the run" in ended.hint
    assert ended.mistake is None, "the launch goes on and reports a failed run"


def test_of_an_epoch_that_was_trained_twice_the_whole_checkpoint_counts(spec: RunSpec) -> None:
    flip_a_bit(spec, 2)
    with new_checkpoint(spec.run_folder, 2) as again:
        (again / EVALUATION_FILE).write_bytes(evaluation(spec, 3).read_bytes())
    ended = fitted(spec)
    assert isinstance(ended, Fitted) and ended.checkpoint.name == "checkpoint_000002_2"
