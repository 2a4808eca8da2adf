"""One run, from its spec to its last checkpoint: under Ray Train, or in the process of a trial where one worker trains it.

Ray Train starts workers and replaces those that are lost. The run's own storage says from which checkpoint they go on and which one counts in
the end: the spool holds the epochs that there were, and the checkpoints stand beside it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

from mgmrn.data.seal import check_open
from mgmrn.errors import ResourceError
from mgmrn.protocol import Evaluation, load_evaluation
from pipeline.spool import Spool
from pipeline.storage import StorageError, StoragePath, check_writable, explained
from pipeline.train.checkpoints import counting_epoch, kept_checkpoints
from pipeline.train.messages import Failure, note_taker, recorded_failure
from pipeline.train.placement import CONTEXT_MIB, Placement
from pipeline.train.process_group import ProcessGroup
from pipeline.train.ray_start import await_ranks
from pipeline.train.spec import EVALUATION_FILE, Calibration, RunSpec

T = TypeVar("T")

RETRIES = 3
"""Restarts after lost workers; failures that a retry cannot mend end at the first."""

COUNT_SECONDS = 21.0
"""Ray counts what the hosts have every 20 seconds. Before that, an elastic run that lost a host would ask for it again, and wait a minute."""

GROWTH_SECONDS = 10.0

GROUP_POLL_SECONDS = 0.25

QUIET = ray.train.LoggingConfig(log_level="CRITICAL")
"""Ray Train logs into its own files, `logs/train` of Ray's session, and prints nothing between the driver's lines."""


@dataclass(frozen=True)
class Fitted:
    """A run that reached its last epoch."""

    checkpoint: StoragePath
    """Checkpoint of the epoch that counts: the best on `tune`, the last on `final`."""
    epoch: int
    evaluation: Evaluation
    metrics: dict[str, float]

    @classmethod
    def from_checkpoint(cls, folder: StoragePath, metrics: Mapping[str, float]) -> Fitted:
        with (folder / EVALUATION_FILE).fetched() as file:
            return cls(folder, int(metrics["epoch"]), load_evaluation(file), dict(metrics))

    @property
    def reported(self) -> dict[str, float]:
        return {key: float(value) for key, value in self.metrics.items() if key.startswith(("val/", "test/", "perf/"))}

    @property
    def calibration(self) -> Calibration:
        """Calibration that a `tune` run chooses for its `final` run."""
        eszsl = (self.metrics.get("train/log10_gamma"), self.metrics.get("train/log10_lambda"))
        chosen = None if None in eszsl else eszsl
        return Calibration(epochs=self.epoch, gamma=self.evaluation.result.gamma, eszsl_log10=chosen)


@dataclass(eq=False)
class ControllerCallback(ray.train.UserCallback):
    """Appends each epoch to the run's spool, and pauses before lost workers are replaced; runs in Ray Train's controller."""

    run_folder: StoragePath
    pause_seconds: float

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        Spool(self.run_folder).append(int(metrics[0]["epoch"]), metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        time.sleep(self.pause_seconds)


def train_worker(spec_json: dict[str, str]) -> None:
    """Trains one rank under Ray Train. Its packages are imported here: driver and controller need no torch, which takes seconds to load."""
    import ray.train.torch

    from mgmrn.feed import Share
    from pipeline.train.worker import train_epochs

    spec, context = RunSpec.model_validate_json(spec_json["spec"]), ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    if share.rank == 0 and (group := get_current_placement_group()):
        spec.placement_file.write(group.id.hex().encode())
    for metrics in train_epochs(spec, share, ray.train.torch.get_device()):
        ray.train.report(metrics)


def fit(spec: RunSpec, placement: Placement) -> Iterator[dict[str, float] | Fitted | Failure]:
    """Trains a run until its last epoch, from its latest checkpoint where there is one: in this process where one worker trains it, else
    under Ray Train.

    Yields the metrics of each epoch, once it is noted in the run's spool, and at last the outcome. The epochs of an earlier attempt come
    first, so that a trial that is started again shows its whole curve. Raises `SealedError` for a `final` run, in a sealed process; the
    workers would not be sealed.
    """
    if spec.split == "final":
        check_open("a final run")
    yield from (_fit_here if placement.is_alone else _fit_elsewhere)(spec, placement)


def _fit_here(spec: RunSpec, placement: Placement) -> Iterator[dict[str, float] | Fitted | Failure]:
    import torch

    from mgmrn.feed import Share
    from pipeline.train.worker import train_epochs

    device = torch.device("cuda", 0) if placement.gpus_per_worker else torch.device("cpu")
    if 0 < placement.gpus_per_worker < 1:
        # Runs that share a GPU: one that asks for more than its share fails, and not its neighbours.
        context = CONTEXT_MIB * 2**20 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, placement.gpus_per_worker - context), device)
    spool = Spool(spec.run_folder)
    noted = spool.epochs()
    yield from (noted[epoch] for epoch in sorted(noted))
    try:
        for metrics in train_epochs(spec, Share(0, 1), device):
            with explained(spec.run_folder):
                spool.append(int(metrics["epoch"]), metrics)
            if metrics["epoch"] not in noted:
                yield metrics
    except ResourceError as error:
        yield Failure.of_resources(error)
    else:
        yield recorded_failure(spec.failure_file) or _counting_checkpoint(spec)


def _fit_elsewhere(spec: RunSpec, placement: Placement) -> Iterator[dict[str, float] | Fitted | Failure]:
    """Ray Train works in a thread, and what its controller notes in the spool is followed.

    Lost workers are replaced up to `RETRIES` times, each time from the latest checkpoint. An elastic run goes on with those that there is
    room for, and begins the epoch again with more when there is room for more; a global batch stays what it is.
    """
    release_placement_group(spec.placement_file)  # Left by a lost process of this trial.
    # Rank 0 writes this file first: from here on it tells that the ranks have begun.
    spec.placement_file.delete()
    spool, last, is_over = Spool(spec.run_folder), 0, False
    # Ray's own files tell it of an earlier run of the name, which it would continue. They have no use after this one.
    with tempfile.TemporaryDirectory(prefix="mgmrn-", ignore_cleanup_errors=True) as scratch:
        ended = in_thread(_trainer(spec, placement, scratch).fit, "ray-train")
        try:
            await_ranks(ended, spec.placement_file, note_taker(spool))
        except ResourceError as error:
            yield Failure.of_resources(error)
            return
        while not is_over:
            is_over = ended.done()  # Read first: what is noted before the end must still be yielded.
            noted = spool.epochs()
            yield from (noted[epoch] for epoch in sorted(noted) if epoch > last)
            last = max(noted, default=0)
            wait([ended], spec.run_folder.poll_seconds)
    try:
        ended.result()
    except ray.train.TrainingFailedError as error:
        lost = str(error).strip() or type(error).__name__
        yield _failure(spec, lost.splitlines()[-1].strip())
    else:
        yield recorded_failure(spec.failure_file) or _counting_checkpoint(spec)


def _trainer(spec: RunSpec, placement: Placement, scratch: str) -> DataParallelTrainer:
    """Ray's trainer of a run, with a folder for its own files on this host; not `TorchTrainer`, which imports torch in every trial."""
    pause_seconds = 0.0 if placement.most_workers is None else COUNT_SECONDS
    return DataParallelTrainer(
        train_worker,
        train_loop_config={"spec": spec.model_dump_json()},
        backend_config=ProcessGroup("nccl" if placement.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.number,
            elastic_resize_monitor_interval_s=GROWTH_SECONDS,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=placement.resources_per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=spec.run_folder.name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
            callbacks=[ControllerCallback(spec.run_folder, pause_seconds)],
            logging_config=QUIET,
        ),
    )


def in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Starts a function in a daemon thread, which does not hold up the end of the process; errors are raised by the future."""
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended


def _counting_checkpoint(spec: RunSpec) -> Fitted | Failure:
    """Outcome of a run. Another epoch's checkpoint would be another result: it never takes the place of a damaged one."""
    epochs = Spool(spec.run_folder).epochs()
    if max(epochs, default=0) < spec.epochs:
        return _failure(spec, "the workers ended before the last epoch was noted")
    epoch = counting_epoch(spec.split, epochs)
    damage = "it is missing"
    for one in reversed([one for one in kept_checkpoints(spec.run_folder) if one.epoch == epoch]):
        wrong = one.damage()
        if wrong is None:
            return Fitted.from_checkpoint(one.folder, epochs[epoch])
        damage = wrong
    return Failure(
        "damaged-checkpoint",
        f"the checkpoint of epoch {epoch}, which counts, was damaged after it was written: {damage}",
        str(spec.run_folder),
        "look after the disk; the same command trains the run again",
    )


def _failure(spec: RunSpec, lost: str) -> Failure:
    """The failure that a worker noted; a full or read-only storage, where it could not note that; else lost workers."""
    try:
        with explained(spec.run_folder):
            if noted := recorded_failure(spec.failure_file):
                return noted
            check_writable(spec.run_folder)
    except StorageError as error:
        return Failure.of_resources(error)
    return Failure("workers-lost", lost)


def release_placement_group(path: StoragePath, grace_seconds: float = 0.0) -> None:
    """Removes the placement group of a run whose trial was ended from outside, if Ray has not removed it within a grace period.

    Ray Train's own actor for that asks the dashboard whether a controller is alive. A dashboard that is busy or gone leaves the group and
    its CPUs taken for ever; the cluster itself is asked here. The file of the group's id is absent where no rank came up.
    """
    if (found := path.read()) is None:
        return
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(found.decode())))
    deadline = time.monotonic() + grace_seconds
    # An interrupted launch disconnects from Ray, which ends its groups; the calls below would start an instance of their own then.
    # A group of an earlier cluster is not in the table.
    while ray.is_initialized() and placement_group_table(group).get("state", "REMOVED") != "REMOVED":
        if time.monotonic() >= deadline:
            remove_placement_group(group)
            return
        time.sleep(GROUP_POLL_SECONDS)
