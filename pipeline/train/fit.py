"""One run under Ray Train: from its spec to its last checkpoint.

Ray Train starts workers and replaces those that are lost. From which checkpoint they go on, and which of them counts in the end, is read off
the run's own storage: the spool says which epochs there were, the checkpoints stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.train import FailureConfig, RunConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from mgmrn.data.seal import check_open
from mgmrn.protocol import Evaluation, load_evaluation
from pipeline.tracking.spool import Spool
from pipeline.train.callback import NoHaste, SpoolEpochs
from pipeline.train.checkpoints import counting_epoch, kept_checkpoints
from pipeline.train.cluster import Placement
from pipeline.train.entry import train_worker
from pipeline.train.failure import Failure, recorded_failure
from pipeline.train.spec import EVALUATION_FILE, Calibration, RunSpec
from pipeline.train.storage import StorageError, check_writable
from pipeline.train.trainer import QUIET, LeanTrainer

RETRIES = 3
"""Restarts after lost workers; failures that a retry cannot mend end at the first."""

COUNT_SECONDS = 21.0
"""Ray counts what the hosts have every 20 seconds. Before that, an elastic run that lost a host would ask for it again, and wait a minute."""


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
    trainer = LeanTrainer.on(placement, train_worker, spec.model_dump_json(), run_config)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return (
            recorded_failure(spec.failure_file) or _storage_failure(spec) or Failure("workers-lost", _last_line(error))
        )
    return recorded_failure(spec.failure_file) or _counting_checkpoint(spec)


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
