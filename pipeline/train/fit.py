"""One run under Ray Train: from its spec to its last checkpoint.

Ray Train starts workers and replaces those that are lost. From which checkpoint they go on, and which of them counts in the end, is read off
the run's own storage: the spool says which epochs there were, the checkpoints stand beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from mgmrn.data.seal import check_open
from mgmrn.errors import ResourceError
from mgmrn.protocol import Evaluation, load_evaluation
from pipeline.spool import Spool
from pipeline.train.callback import NoHaste, SpoolEpochs
from pipeline.train.checkpoints import counting_epoch, kept_checkpoints
from pipeline.train.cluster import Placement
from pipeline.train.entry import train_worker
from pipeline.train.messages import Failure, note_taker, recorded_failure
from pipeline.train.process_group import ProcessGroup
from pipeline.train.spec import EVALUATION_FILE, Calibration, RunSpec
from pipeline.train.start_watch import await_ranks
from pipeline.train.storage import StorageError, check_writable

RETRIES = 3
"""Restarts after lost workers; failures that a retry cannot mend end at the first."""

COUNT_SECONDS = 21.0
"""Ray counts what the hosts have every 20 seconds. Before that, an elastic run that lost a host would ask for it again, and wait a minute."""

GROWTH_SECONDS = 10.0
"""Interval at which an elastic run looks for room to grow."""

QUIET = LoggingConfig(log_level="CRITICAL")
"""Ray Train logs into its own files, `logs/train` of Ray's session, and prints nothing between the driver's lines."""


@dataclass(frozen=True)
class Fitted:
    """A run that came to its end."""

    checkpoint: Path
    """The checkpoint of the epoch that counts: the best on `tune`, the last on `final`."""
    epoch: int
    evaluation: Evaluation
    metrics: dict[str, float]
    """Rank 0's report of that epoch."""

    @classmethod
    def from_checkpoint(cls, folder: Path, metrics: Mapping[str, float]) -> Fitted:
        """What a run came to, from the checkpoint that counts and its report."""
        return cls(folder, int(metrics["epoch"]), load_evaluation(folder / EVALUATION_FILE), dict(metrics))

    @property
    def reported(self) -> dict[str, float]:
        """The figures that stand for the run."""
        return {key: float(value) for key, value in self.metrics.items() if key.startswith(("val/", "test/", "perf/"))}

    @property
    def calibration(self) -> Calibration:
        """What a `tune` run decides for its `final` run."""
        eszsl = (self.metrics.get("train/log10_gamma"), self.metrics.get("train/log10_lambda"))
        return Calibration(
            epochs=self.epoch,
            gamma=self.evaluation.result.gamma,
            eszsl_log10=None if None in eszsl else eszsl,
        )


def fit(spec: RunSpec, placement: Placement) -> Fitted | Failure:
    """Trains until the last epoch, going on from the latest checkpoint of this very run where there is one.

    Lost workers are replaced up to `RETRIES` times, each time from the latest checkpoint. An elastic run goes on with those that there is
    room for, and begins the epoch again with more when there is room for more; a global batch stays what it is.

    Args:
        spec: what is trained.
        placement: workers and their resources.

    Raises:
        SealedError: for a `final` run, in a sealed process; the workers would not be sealed.
    """
    if spec.split == "final":
        check_open("a final run")
    patience = [] if placement.most_workers is None else [NoHaste(COUNT_SECONDS)]
    run_config = RunConfig(
        name=spec.run_folder.name,
        storage_path=str(spec.run_folder.parent),
        failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
        callbacks=[SpoolEpochs(spec.spool_file), *patience],
        logging_config=QUIET,
    )
    trainer = make_trainer(placement, train_worker, spec.model_dump_json(), run_config)
    # Rank 0 writes this file first: from here on it tells that the ranks have begun.
    spec.placement_file.unlink(missing_ok=True)
    wait = partial(await_ranks, begun=spec.placement_file, speak=note_taker(spec.notes_file))
    try:
        _run_interruptibly(trainer.fit, wait)
    except ResourceError as error:
        return Failure("cannot-run-here", error.message, hint=error.hint)
    except TrainingFailedError as error:
        return (
            recorded_failure(spec.failure_file) or _storage_failure(spec) or Failure("workers-lost", _last_line(error))
        )
    return recorded_failure(spec.failure_file) or _counting_checkpoint(spec)


def make_trainer(
    placement: Placement, loop: Callable[[dict[str, str]], None], spec_json: str, run_config: RunConfig
) -> DataParallelTrainer:
    """Ray Train's trainer for the ranks of a placement.

    `DataParallelTrainer` instead of `TorchTrainer`: the latter imports torch in the driver and in every trial.

    Args:
        placement: number of ranks and resources of each.
        loop: function of each rank; receives `{"spec": spec_json}`.
        spec_json: the run's `RunSpec`.
        run_config: name, storage, callbacks.
    """
    return DataParallelTrainer(
        loop,
        train_loop_config={"spec": spec_json},
        backend_config=ProcessGroup.between(placement.gpus_per_worker),
        scaling_config=ScalingConfig(
            num_workers=placement.number,
            elastic_resize_monitor_interval_s=GROWTH_SECONDS,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=placement.resources_per_worker,
        ),
        run_config=run_config,
    )


def _run_interruptibly(fit: Callable[[], object], wait: Callable[[threading.Thread], None]) -> None:
    """Runs `fit` in a thread of its own, where Ray Train installs no signal handlers.

    A signal then interrupts the calling thread, which disconnects from Ray: that ends controller and ranks before the run is closed.

    Args:
        fit: runs Ray Train.
        wait: waits until the ranks have begun.

    Raises:
        ResourceError: what `wait` raises; the thread is left behind.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fit()
        except BaseException as error:  # Raised again in the calling thread.
            errors.append(error)

    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    thread.start()
    try:
        wait(thread)
        thread.join()
    except ResourceError:
        raise
    except BaseException:
        ray.shutdown()
        raise
    if errors:
        raise errors[0]


def _counting_checkpoint(spec: RunSpec) -> Fitted | Failure:
    """What the run came to. Another epoch's checkpoint would be another result: it never takes the place of a damaged one."""
    epochs = Spool(spec.spool_file).epochs()
    if max(epochs, default=0) < spec.epochs:
        return _storage_failure(spec) or Failure("workers-lost", "the workers ended before the last epoch was noted")
    epoch = counting_epoch(spec.split, epochs)
    damage = "it is missing"
    for one in reversed(kept_checkpoints(spec.run_folder)):
        if one.epoch == epoch:
            wrong = one.damage()
            if wrong is None:
                return Fitted.from_checkpoint(one.folder, epochs[epoch])
            damage = wrong
    return Failure(
        "damaged-checkpoint",
        f"the checkpoint of epoch {epoch}, which counts, was damaged after it was written: {damage}",
        str(spec.run_folder),
        "look after the disk; the same command trains the run anew",
    )


def _storage_failure(spec: RunSpec) -> Failure | None:
    """A worker that cannot write cannot leave a note of that either."""
    try:
        check_writable(spec.run_folder)
    except StorageError as error:
        return Failure("storage", error.message, hint=error.hint)
    return None


def _last_line(error: TrainingFailedError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
