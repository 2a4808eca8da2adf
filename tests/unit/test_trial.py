"""Process of a trial of one worker: it trains run after run with the figures of a fresh process, and is replaced when it is spoiled."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch

from mgmrn.checkpoint import load_checkpoint
from mgmrn.data import resident_maps
from mgmrn.data.seal import is_sealed
from mgmrn.data.splits import final_data, load_tune
from mgmrn.data.xlsa17 import load_benchmark
from pipeline.config.compose import load_experiment
from pipeline.spool import Spool
from pipeline.storage import StoragePath
from pipeline.train import worker
from pipeline.train.cell import make_cell
from pipeline.train.checkpoints import kept_checkpoints
from pipeline.train.placement import Placement
from pipeline.train.spec import MODEL_FILE, RunSpec
from pipeline.trials.trial import GROWTH, STEPS, OpenTrial, TrialPlan, TrialReport
from tests.ray.command import REPOSITORY
from tests.ray.small import write_small

ALONE = Placement(workers=1, cpus_per_worker=1, gpus_per_worker=0)
EPOCHS = 2


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)


def spec_of(variant: str, split: str = "tune", seed: int = 0, *changes: str) -> RunSpec:
    backbone = ["model.backbone.trainable=none", "model.backbone.batch_norm=frozen"]
    composed = load_experiment(
        "small.yaml", ["cache_features=true", "benchmark.images.flip=false", *backbone, *changes]
    )
    config, root = composed.config.benchmark, Path("data").resolve()
    data = load_tune(root, config) if split == "tune" else final_data(load_benchmark(root, config))
    return make_cell(composed, seed, data, None, variant).spec(root, StoragePath.parse(Path("runs").resolve()), 1)


def config_of(*runs: RunSpec) -> dict[str, Any]:
    return {"plan": TrialPlan(number=0, runs=runs, placement=ALONE).model_dump_json()}


def steps_of(process: OpenTrial) -> list[TrialReport]:
    reports = []
    while not (result := process.step()).get("done"):
        report = TrialReport.from_tune(result)
        assert report is not None
        reports.append(report)
    assert STEPS in result, "Ray Tune demands the metric in every result"
    return reports


def figures(spec: RunSpec) -> dict[str, Any]:
    """Everything of a run that must not depend on the process: figures of every epoch, and the weights after the last."""
    with kept_checkpoints(spec.run_folder)[-1].folder.fetched() as folder:
        state = load_checkpoint(folder, spec.identity)
    exact = {
        epoch: {key: value for key, value in numbers.items() if not key.startswith("perf/") and key != "moment"}
        for epoch, numbers in Spool(spec.run_folder).epochs().items()
    }
    return {"epochs": exact, "weights": {name: one.double().sum().item() for name, one in state["network"].items()}}


@pytest.mark.ray
def test_a_warm_process_gives_the_figures_of_a_fresh_one() -> None:
    tune, other, again = spec_of("first"), spec_of("other", "final", 1), spec_of("again")
    exploding = spec_of("exploding", "tune", 0, "optimiser.name=sgd", "optimiser.head_lr=1e30")
    process = OpenTrial(config_of(tune))
    reports = steps_of(process)
    assert [report.steps for report in reports] == [1, 2, 2] and reports[-1].checkpoint
    process.reset_config(config_of(exploding))
    failure = steps_of(process)[-1].failure
    assert failure is not None and failure.reason == "non-finite-loss"
    for spec in (other, again):
        assert process.reset_config(config_of(spec))
        assert not is_sealed()
        assert steps_of(process)[-1].checkpoint
    assert "test/gzsl_h" in Spool(other.run_folder).epochs()[EPOCHS]

    fresh = spec_of("fresh")
    script = "import sys; from pipeline.trials.trial import OpenTrial; process = OpenTrial({'plan': sys.argv[1]})\n"
    script += "while not process.step().get('done'): pass"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    }
    subprocess.run([sys.executable, "-c", script, config_of(fresh)["plan"]], check=True, env=environment)
    assert figures(tune) == figures(again) == figures(fresh)


def test_a_trial_that_starts_again_first_reports_what_was_noted() -> None:
    spec = spec_of("cut")
    first = OpenTrial(config_of(spec))
    first.step()
    first.cleanup()
    reports = steps_of(OpenTrial(config_of(spec)))
    assert [report.steps for report in reports] == [1, 2, 2]
    noted = [entry.content["step"] for entry in Spool(spec.run_folder).read() if entry.kind == "metrics"]
    assert noted == [1, 2], "no epoch is noted twice"


def test_a_stopped_trial_gives_up_its_run() -> None:
    process = OpenTrial(config_of(spec_of("stopped")))
    process.step()
    assert is_sealed(), "the run is open"
    assert process.reset_config(config_of(spec_of("next")))
    assert not is_sealed()
    process.cleanup()


@pytest.mark.parametrize(
    ("split", "log_model", "exported"),
    [("tune", "final", False), ("tune", "all", True), ("final", "final", True), ("final", "none", False)],
)
def test_the_checkpoint_that_counts_holds_the_model_where_it_is_to_be_logged(
    split: str, log_model: str, exported: bool
) -> None:
    spec = spec_of("model", split).model_copy(update={"log_model": log_model})
    last = steps_of(OpenTrial(config_of(spec)))[-1].checkpoint
    assert last is not None and (Path(last) / MODEL_FILE).exists() is exported


@pytest.mark.parametrize("spoiled_by", ["memory that ran out", "a leak"])
def test_a_spoiled_process_trains_no_further_run(monkeypatch: pytest.MonkeyPatch, spoiled_by: str) -> None:
    """Ray Tune starts a trial whose step raises again, in a new process."""
    process = OpenTrial(config_of(spec_of("first")))
    if spoiled_by == "memory that ran out":
        monkeypatch.setattr(worker, "train_epoch", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
        (report,) = steps_of(process)
        assert report.failure is not None and report.failure.reason == "out-of-memory"
    else:
        for size in (100, GROWTH * 100 + 1):
            monkeypatch.setattr(psutil.Process, "memory_info", lambda self, rss=size: SimpleNamespace(rss=rss))
            process.reset_config(config_of(spec_of("second")))
    after = spec_of("third")
    assert process.reset_config(config_of(after))
    with pytest.raises(RuntimeError, match="had no memory left"):
        process.step()
    assert not after.run_folder.exists()


def test_a_run_whose_maps_leave_too_little_memory_goes_on_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, run, on_device = spec_of("undisturbed"), spec_of("run"), []
    steps_of(OpenTrial(config_of(undisturbed)))
    for name, value in (("free_bytes", lambda device: 2**30), ("_loaded", {}), ("_kept_off", False)):
        monkeypatch.setattr(resident_maps, name, value)
    train_epoch = worker.train_epoch

    def short_of_memory(trainer: Any, batches: Any) -> Any:
        on_device.append(bool(resident_maps._loaded))
        if trainer.epoch == 1 and resident_maps._loaded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_epoch(trainer, batches)

    monkeypatch.setattr(worker, "train_epoch", short_of_memory)
    assert steps_of(OpenTrial(config_of(run)))[-1].checkpoint
    assert on_device == [True, True, False], "the first epoch is not trained again"
    assert figures(run) == figures(undisturbed)
    notes = [entry.content["text"] for entry in Spool(run.run_folder).read() if entry.kind == "note"]
    assert "maps are on the GPU" in notes[0] and "the maps stay on the host" in notes[-1]


@pytest.mark.long
def test_fifty_runs_in_one_process_do_not_make_it_grow() -> None:
    process = OpenTrial(config_of(spec_of("warm-up")))
    steps_of(process)
    sizes = []
    for seed in range(50):
        process.reset_config(config_of(spec_of("cell", seed=seed)))
        assert steps_of(process)[-1].checkpoint
        sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] < 1.1 * sizes[4]
