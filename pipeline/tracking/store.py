"""Runs in MLflow: found, created, resumed and ended. Thin over `MlflowClient`, with our names.

An experiment is a question (`mgmrn/train`), a parent run one launch, a child one (benchmark, variant, seed, split). The
driver alone creates and ends runs. MLflow takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mgmrn.errors import UserError
from pipeline.databases import with_installed_driver
from pipeline.driver import driver_is_dead, driver_tag
from pipeline.errors import TrackingError
from pipeline.job_environment import job_tags
from pipeline.redaction import redact
from pipeline.spool import PARENT_TAG, DatasetInput, EndStatus, Epoch, NewRun, RunState, StoreIdentity
from pipeline.tracking.connection import open_client, sqlite_file, translated

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

RUN_ID = re.compile(r"[0-9a-f]{32}")
ATTRIBUTE_LIMIT = 100
"""Params or tags in one request."""
METRIC_LIMIT = 1000
"""Metrics in one request."""
DRIVER_TAG = "mgmrn.driver"
TRAIN = "mgmrn/train"
"""The experiment of the runs that `train` makes."""

T = TypeVar("T")


@dataclass(frozen=True)
class TrackedRun:
    """A run as the store has it."""

    run_id: str
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each."""
    experiment_id: str = ""
    seconds: float | None = None
    """Wall-clock seconds from its start to its end; None while it is on, and where two clocks contradict each other."""

    @property
    def gpu_seconds(self) -> float:
        """As recorded at its end; 0 without GPUs, or where it did not get there."""
        return float(self.tags.get("mgmrn.gpu_seconds", 0))

    @property
    def is_cut_off(self) -> bool:
        """Whether it has neither an end of its own nor a driver that leads it there, so that it can be gone on with."""
        if self.status == "FAILED":
            return self.tags.get("mgmrn.stop_reason") in ("workers-lost", "storage")
        return self.status == "KILLED" or (self.status == "RUNNING" and driver_is_dead(self.tags.get(DRIVER_TAG, "")))

    @property
    def parent_run_id(self) -> str | None:
        """The launch that the run was created by."""
        return self.tags.get(PARENT_TAG)


def run_name(benchmark: str, variant: str, seed: int, config_hash: str) -> str:
    """Like `cub.no_mrm.s3.1f0c9a2e`."""
    return f"{benchmark.lower()}.{variant}.s{seed}.{config_hash[:8]}"


class TrackingStore:
    """One tracking server or database, and one experiment in it.

    Args:
        client: connected to the store.
        uri: its address.
        experiment: name of the experiment, made when it does not exist.

    Every method raises `TrackingError` where the store is away or refuses.
    """

    def __init__(self, client: MlflowClient, uri: str, experiment: str) -> None:
        self.client = client
        self.uri = uri
        with translated(uri):
            found = _experiment(client, uri, experiment)
        self.experiment_id = str(found.experiment_id)
        address = f"sqlite:///{sqlite_file(uri)}" if uri.startswith("sqlite:") else redact(uri)
        self.identity = StoreIdentity(address, experiment, int(found.creation_time or 0))

    @classmethod
    def connect(cls, uri: str, experiment: str = TRAIN) -> TrackingStore:
        """Connects; makes the database's tables and the experiment where they are missing.

        Raises:
            TrackingError: within ten seconds where nothing answers, or for an address of a kind that MLflow does not write to.
        """
        uri = with_installed_driver(uri)
        return cls(open_client(uri), uri, experiment)

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest finished run of a config on a split."""
        return self._latest(config_hash, split, ("FINISHED",))

    def find_resumable(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest unfinished run of a config on a split that no living driver works on."""
        return self._latest(config_hash, split, ("RUNNING", "KILLED", "FAILED"))

    def runs_of(self, patterns: Sequence[str], wanted: str) -> list[TrackedRun]:
        """Runs of all experiments whose names are like one of the patterns (`mgmrn/ablation/%`), the latest first.

        Args:
            patterns: of experiment names, as SQL's LIKE takes them.
            wanted: a filter as MLflow's search takes it.
        """
        with translated(self.uri):
            found = [
                one for like in patterns for one in self.client.search_experiments(filter_string=f"name LIKE '{like}'")
            ]
        experiments = [str(one.experiment_id) for one in found]
        return list(self._search(wanted, experiments)) if experiments else []

    def create_parent(self, name: str, tags: Mapping[str, str]) -> str:
        """A run for one launch; returns its id."""
        return self._create(name, {**tags, DRIVER_TAG: driver_tag()})

    def create_run(self, new: NewRun) -> str:
        """Creates a run without its params and data set; returns its id."""
        return self._create(new.name, new.tags, new.time_ms)

    def describe_run(self, run_id: str, new: NewRun) -> None:
        """Logs a run's params and data set; doing it again changes nothing."""
        from mlflow.entities import Param

        params = (Param(path, value) for path, value in new.params.items())
        with translated(self.uri):
            for part in _batched(params, ATTRIBUTE_LIMIT):
                self.client.log_batch(run_id, params=part)
        if new.dataset is not None:
            self.log_dataset(run_id, new.dataset)

    def create_link(self, parent_run_id: str, name: str, tags: Mapping[str, str]) -> str:
        """A run that stands for one below another parent; returns its id."""
        return self._create(name, {**tags, PARENT_TAG: parent_run_id, DRIVER_TAG: driver_tag()})

    def own_runs(self, wanted: str) -> list[TrackedRun]:
        """Runs of this experiment that a filter finds, the latest first."""
        return list(self._search(wanted))

    def resume(self, run: TrackedRun, parent_run_id: str) -> None:
        """Continues a run under a new driver and launch: RUNNING again, one attempt more."""
        attempt = int(run.tags.get("mgmrn.attempt", "1")) + 1
        self.set_tags(run.run_id, {"mgmrn.attempt": str(attempt), PARENT_TAG: parent_run_id})
        self.reopen(run)

    def reopen(self, run: TrackedRun) -> None:
        """Makes this process the driver of a run that another one left."""
        self.set_tags(run.run_id, {DRIVER_TAG: driver_tag(), **job_tags()})
        with translated(self.uri):
            self.client.update_run(run.run_id, status="RUNNING")

    def get(self, run_id: str) -> TrackedRun:
        """A run by its id.

        Raises:
            UserError: when it cannot be an id.
        """
        if not RUN_ID.fullmatch(run_id):
            hint = "give the 32 letters and digits that `train` and `compare` print"
            raise UserError(f"{run_id!r} is no id of a run", "RUN", hint)
        with translated(self.uri):
            return _tracked(self.client.get_run(run_id))

    def state_of(self, run_id: str) -> RunState:
        """Whether the store has a run, or its user has deleted it, or the store does not know the id."""
        from mlflow.exceptions import MlflowException

        with translated(self.uri):
            try:
                run = self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return "lost"
                raise
        return "active" if run.info.lifecycle_stage == "active" else "deleted"

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """The steps of a metric that the run has."""
        with translated(self.uri):
            return {metric.step for metric in self.client.get_metric_history(run_id, key)}

    def log_metrics(self, run_id: str, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Adds one value to each of some metrics; the store keeps both when it is done twice."""
        self.log_epochs(run_id, [Epoch(step, metrics, timestamp_ms)])

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        """`log_metrics` for several steps at once."""
        from mlflow.entities import Metric

        entities = (
            Metric(key, value, epoch.timestamp_ms, epoch.step)
            for epoch in epochs
            for key, value in epoch.metrics.items()
        )
        with translated(self.uri):
            for part in _batched(entities, METRIC_LIMIT):
                self.client.log_batch(run_id, metrics=part)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags; doing it again changes nothing."""
        from mlflow.entities import RunTag

        with translated(self.uri):
            for part in _batched((RunTag(key, value) for key, value in tags.items()), ATTRIBUTE_LIMIT):
                self.client.log_batch(run_id, tags=part)

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Uploads a folder's content, under the names that it has there."""
        with translated(self.uri):
            self.client.log_artifacts(run_id, str(folder))

    def log_file(self, run_id: str, path: Path, folder: str) -> None:
        """Uploads one file into a folder of the run's artifacts."""
        with translated(self.uri):
            self.client.log_artifact(run_id, str(path), folder)

    def log_model(self, run_id: str, file: Path, gamma: float, example: Path) -> None:
        """Logs an exported model with the run; doing it again changes nothing."""
        from pipeline.tracking.model import log_image_model

        with translated(self.uri):
            log_image_model(self.client, self.uri, self.experiment_id, run_id, file, gamma, example)

    def read_text(self, run_id: str, path: str) -> str:
        """The text of an artifact.

        Raises:
            UserError: when the path leads out of the run's artifacts.
        """
        _check_inside(path)
        with translated(self.uri), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")

    def log_dataset(self, run_id: str, dataset: DatasetInput) -> None:
        """Records the data as the run's input; doing it again changes nothing."""
        from mlflow.entities import Dataset, InputTag
        from mlflow.entities import DatasetInput as MlflowInput

        profile = json.dumps(dict(dataset.counts))
        entity = Dataset(dataset.name, dataset.digest[:36], "xlsa17", json.dumps({"layout": "xlsa17"}), profile=profile)
        tags = [InputTag("mlflow.data.context", dataset.split)]
        with translated(self.uri):
            self.client.log_inputs(run_id, datasets=[MlflowInput(entity, tags)])

    def finish(self, run_id: str, status: EndStatus, stop_reason: str, time_ms: int | None = None) -> None:
        """Ends a run and says why.

        Args:
            run_id: the run.
            status: of its end.
            stop_reason: why it ended, as a tag.
            time_ms: of its end; None is now.
        """
        self.set_tags(run_id, {"mgmrn.stop_reason": stop_reason})
        with translated(self.uri):
            self.client.set_terminated(run_id, status=status, end_time=time_ms)

    def close_dead_runs(self, keep: Collection[str] = ()) -> list[TrackedRun]:
        """Ends the runs of drivers of this host that are dead.

        Args:
            keep: ids of runs that are resumed now.

        Returns:
            The runs that were closed.
        """
        dead = [
            run for run in self._search("attributes.status = 'RUNNING'") if driver_is_dead(run.tags.get(DRIVER_TAG, ""))
        ]
        closed = [run for run in dead if run.run_id not in keep]
        for run in closed:
            self.finish(run.run_id, "KILLED", "driver died")
        return closed

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Turns what MLflow raises inside into `TrackingError`."""
        return translated(self.uri)

    def _create(self, name: str, tags: Mapping[str, str], time_ms: int | None = None) -> str:
        with translated(self.uri):
            run = self.client.create_run(self.experiment_id, start_time=time_ms, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def _latest(self, config_hash: str, split: str, statuses: Sequence[str]) -> TrackedRun | None:
        wanted = f"tags.`mgmrn.config_hash` = '{config_hash}' and tags.`mgmrn.split` = '{split}'"
        runs = (run for run in self._search(wanted) if run.status in statuses)
        return next(
            (run for run in runs if run.status != "RUNNING" or driver_is_dead(run.tags.get(DRIVER_TAG, ""))), None
        )

    def _search(self, wanted: str, experiments: Sequence[str] = ()) -> Iterator[TrackedRun]:
        """In this experiment unless others are named."""
        token = None
        while True:
            with translated(self.uri):
                page = self.client.search_runs(
                    list(experiments) or [self.experiment_id],
                    wanted,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            yield from map(_tracked, page)
            token = page.token
            if not token:
                return


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _tracked(run: Run) -> TrackedRun:
    info = run.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time and info.start_time else None
    if seconds is not None and seconds <= 0:
        seconds = None  # Begun by one host and ended by another, whose clock is behind.
    tags, metrics = dict(run.data.tags), dict(run.data.metrics)
    return TrackedRun(info.run_id, info.run_name or "", info.status, tags, metrics, str(info.experiment_id), seconds)


def _experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """By name: an inherited MLFLOW_EXPERIMENT_ID would silently lead elsewhere."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        with contextlib.suppress(MlflowException):  # Another driver has just made it.
            client.create_experiment(name, artifact_location=_artifact_location(uri))
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise TrackingError(f"the experiment {name} cannot be made", uri)
    if experiment.lifecycle_stage != "active":
        hint = "restore it, or remove it for good with mlflow gc"
        raise TrackingError(f"the experiment {name} was deleted", uri, hint)
    return experiment


def _artifact_location(uri: str) -> str | None:
    """Beside a sqlite database, where the server decides nothing."""
    return (sqlite_file(uri).parent / "mlruns").as_uri() if uri.startswith("sqlite:") else None


def _check_inside(path: str) -> None:
    """Raises a `UserError` where an artifact's name is absolute or climbs out of its run."""
    if not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        raise UserError(f"{path!r} leads out of the run's artifacts", "artifact", "name a file as the run lists it")
