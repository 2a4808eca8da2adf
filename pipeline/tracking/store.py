"""Runs in MLflow: found, created, resumed and ended. MLflow takes seconds to import, so it is imported where it is used."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgmrn.errors import UserError
from pipeline.config.identity import REPOSITORY
from pipeline.databases import SQLITE, database_address, is_missing, sqlite_file
from pipeline.driver import driver_is_dead, driver_tag
from pipeline.errors import TrackingError
from pipeline.job_environment import job_tags
from pipeline.redaction import redact
from pipeline.spool import PARENT_TAG, EndStatus, Epoch, NewRun, RunState, StoreIdentity
from pipeline.tracking.connection import open_client, translated

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

RUN_ID = re.compile(r"[0-9a-f]{32}")
DRIVER_TAG = "mgmrn.driver"
TRAIN = "mgmrn/train"
PAGE = 1000
"""Runs of one answer to a search."""
MODEL_TAG, BEGUN_TAG = "mgmrn.model_uri", "mgmrn.model_id"
"""Tags of a run with its logged model, and with one that may be incomplete."""
NO_MODEL_HINT = (
    "name a final run, or run it again with --log-model all, and --force or --mode force; ESZSL exports no model"
)
REQUIREMENTS = ("torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "jaxtyping", "pillow", "pandas", "mlflow")
UI_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of an experiment by which MLflow's UI opens it on its training runs."""
NOTE_TAG, NOTE_LIMIT = "mlflow.note.content", 6000
"""Description of a run or an experiment in MLflow's UI, as Markdown, and the number of characters that every store accepts."""
_RUN_NAME = re.compile(r"[\w.+\-() ]+")
_BESIDE = re.compile(r"(?:mlflow-artifacts:|file:.*/mlruns)/(?P<path>.+)")
"""Address of files that stand beside a database of SQLite; in experiments of earlier versions, absolute and where they once stood."""

Histories = Mapping[str, Mapping[int, float]]
"""Metric → step → value."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as the store has it."""

    run_id: str
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    experiment_id: str = ""
    seconds: float | None = None
    """Wall-clock seconds from start to end; None for a run that has not ended or was resumed, or where two clocks contradict each other."""

    @property
    def gpu_seconds(self) -> float:
        """GPU seconds recorded at the run's end; 0 without GPUs or without an end."""
        return float(self.tags.get("mgmrn.gpu_seconds", 0))

    @property
    def is_cut_off(self) -> bool:
        """Whether the run has no end of its own and no living driver, so that it can be continued."""
        if self.status == "FAILED":
            return self.tags.get("mgmrn.stop_reason") in ("workers-lost", "storage")
        return self.status == "KILLED" or (self.status == "RUNNING" and self.is_abandoned)

    @property
    def is_abandoned(self) -> bool:
        return driver_is_dead(self.tags.get(DRIVER_TAG, ""))

    @property
    def parent_run_id(self) -> str | None:
        return self.tags.get(PARENT_TAG)

    def check_finished_training(self) -> None:
        if self.tags.get("mgmrn.kind") != "run" or self.status != "FINISHED":
            hint = "name a run that `train` or `ablate` printed"
            raise UserError(f"{self.run_id} is no finished training run", "RUN", hint)


class TrackingStore:
    """One experiment in a tracking server or database. Every method raises `TrackingError` if the store is away or refuses."""

    def __init__(self, client: MlflowClient, uri: str, name: str, experiment: Experiment | None) -> None:
        self.client = client
        self.uri = uri
        self.experiment_id = str(experiment.experiment_id) if experiment else ""
        address = f"{SQLITE}{sqlite_file(uri)}" if uri.startswith(SQLITE) else redact(uri)
        self.identity = StoreIdentity(address, name, int(experiment.creation_time or 0) if experiment else 0)

    @classmethod
    def connect(cls, uri: str, experiment: str = TRAIN) -> TrackingStore:
        """Connect; creates missing tables and a missing experiment, and raises `TrackingError` within ten seconds if nothing answers."""
        uri = database_address(uri, "--tracking-uri")
        client = open_client(uri)
        with translated(uri):
            return cls(client, uri, experiment, _made_experiment(client, uri, experiment))

    @classmethod
    def open(cls, uri: str, experiment: str = TRAIN) -> TrackingStore:
        """`connect` for verbs that read: they make no database, whose absence is a `UserError`, and no experiment."""
        uri = database_address(uri, "--tracking-uri")
        if is_missing(uri):
            hint = "train something first, or name the database of your runs"
            raise UserError(f"there is no tracking database {uri}", "--tracking-uri", hint)
        client = open_client(uri)
        with translated(uri):
            found = client.get_experiment_by_name(experiment)
        return cls(client, uri, experiment, found if found and found.lifecycle_stage == "active" else None)

    def get(self, run_id: str) -> TrackedRun:
        """A run by its id; a text that cannot be an id is a `UserError`."""
        if not RUN_ID.fullmatch(run_id):
            hint = "give the 32 letters and digits that `train` and `compare` print"
            raise UserError(f"{run_id!r} is no id of a run", "RUN", hint)
        with translated(self.uri):
            return _tracked(self.client.get_run(run_id))

    def find_run(self, name: str) -> TrackedRun:
        """A run by its id, or the latest finished training run of a name, `final` before `tune`; a `UserError` without one."""
        if RUN_ID.fullmatch(name):
            return self.get(name)
        found: list[TrackedRun] = []
        if _RUN_NAME.fullmatch(name):
            wanted = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED' and tags.`mgmrn.kind` = 'run'"
            found = self.runs_of(("mgmrn/%",), wanted)
        if not found:
            hint = "give the run's id or name, as `train` and `compare` print them, or check --tracking-uri"
            raise UserError(f"there is no finished run called {name}", "RUN", hint)
        return max(found, key=lambda run: run.tags.get("mgmrn.split") == "final")

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        return next((run for run in self._of_config(config_hash, split) if run.status == "FINISHED"), None)

    def find_resumable(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest unfinished run of a config on a split without a living driver."""
        runs = self._of_config(config_hash, split)
        return next((run for run in runs if run.status == "FAILED" or run.is_cut_off), None)

    def own_runs(self, wanted: str) -> list[TrackedRun]:
        """Runs of this experiment that match a filter in MLflow's syntax, the latest first."""
        return self.search(wanted, [self.experiment_id])

    def runs_of(self, patterns: Sequence[str], wanted: str) -> list[TrackedRun]:
        """`own_runs` of all experiments whose name matches one of the patterns with SQL's wildcards (`mgmrn/ablation/%`)."""
        return self.search(wanted, [str(one.experiment_id) for one in self.experiments(*patterns)])

    def search(self, wanted: str, experiments: Iterable[str], most: int | None = None) -> list[TrackedRun]:
        """`own_runs` of experiments by their ids: all, or the latest ones up to a number."""
        # An experiment that a verb that reads does not find has no id.
        places, order = [one for one in experiments if one], ["attributes.start_time DESC"]
        if not places:
            return []
        asked = partial(self.client.search_runs, places, wanted, max_results=most or PAGE, order_by=order)
        with translated(self.uri):
            return [_tracked(run) for run in islice(_paged(asked), most)]

    def experiments(self, *patterns: str) -> list[Experiment]:
        """Experiments whose name matches one of the patterns with SQL's wildcards."""
        asked = [partial(self.client.search_experiments, filter_string=f"name LIKE '{like}'") for like in patterns]
        with translated(self.uri):
            return list(chain.from_iterable(map(_paged, asked)))

    def state_of(self, run_id: str) -> RunState:
        """Whether the store has a run, its user has deleted it, or the store does not know the id."""
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
        with translated(self.uri):
            return {metric.step for metric in self.client.get_metric_history(run_id, key)}

    def histories(self, run: TrackedRun, prefixes: Sequence[str]) -> Histories:
        """All values of the run's metrics whose names begin with one of the prefixes."""
        names = sorted(name for name in run.metrics if name.startswith(tuple(prefixes)))
        with translated(self.uri):
            found = {name: self.client.get_metric_history(run.run_id, name) for name in names}
        return {name: {one.step: one.value for one in history} for name, history in found.items()}

    def read_text(self, run_id: str, path: str) -> str:
        """Text of an artifact; a path that leads out of the run's artifacts is a `UserError`."""
        if not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
            hint = "name a file as the run lists it"
            raise UserError(f"{path!r} leads out of the run's artifacts", "artifact", hint)
        with translated(self.uri), tempfile.TemporaryDirectory() as folder:
            return Path(self.files_of(run_id).download_artifacts(path, folder)).read_text(encoding="utf-8")

    def pages(self, run_id: str) -> dict[str, str]:
        """Path → text of the comparison and the report pages of a grid's run."""
        with translated(self.uri):
            files = self.files_of(run_id)
            found = [*files.list_artifacts(), *files.list_artifacts("report")]
        paths = [one.path for one in found if one.path.endswith((".json", ".html"))]
        return {path: self.read_text(run_id, path) for path in paths}

    def create_parent(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run that this process drives; returns its id."""
        return self.create_run(NewRun(name, {**tags, DRIVER_TAG: driver_tag()}))

    def create_run(self, new: NewRun) -> str:
        """Create a run without its params and data sets; returns its id."""
        with translated(self.uri):
            run = self.client.create_run(self.experiment_id, new.time_ms, tags=dict(new.tags), run_name=new.name)
        return str(run.info.run_id)

    def find_made(self, new: NewRun) -> str | None:
        """Id of the run that was created from these values, if any: its creator may have been killed before it noted the id."""
        same_time = self.own_runs(f"attributes.start_time = {new.time_ms}")
        wanted = new.name, new.tags.get("mgmrn.split")
        return next((run.run_id for run in same_time if (run.name, run.tags.get("mgmrn.split")) == wanted), None)

    def describe_run(self, run_id: str, new: NewRun) -> None:
        """Log a run's params and data sets; repeating it changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(path, value) for path, value in new.params.items()]
        with translated(self.uri):
            self.client.log_batch(run_id, params=params)
            for data in new.datasets:
                source, profile = json.dumps({"layout": "xlsa17"}), json.dumps(dict(data.counts))
                entity = Dataset(data.name, data.digest[:36], "xlsa17", source, profile=profile)
                tags = [InputTag("mlflow.data.context", data.split)]
                self.client.log_inputs(run_id, datasets=[DatasetInput(entity, tags)])

    def resume(self, run: TrackedRun, launch: Mapping[str, str]) -> None:
        """Reopen a run with one attempt more, and with the tags that refer to its launch, which is another one."""
        attempt = int(run.tags.get("mgmrn.attempt", "1")) + 1
        self.set_tags(run.run_id, {"mgmrn.attempt": str(attempt), **launch})
        self.reopen(run)

    def reopen(self, run: TrackedRun) -> None:
        self.set_tags(run.run_id, {DRIVER_TAG: driver_tag(), **job_tags()})
        with translated(self.uri):
            self.client.update_run(run.run_id, status="RUNNING")

    def finish(
        self,
        run_id: str,
        status: EndStatus,
        stop_reason: str,
        time_ms: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End a run with its reason and more as tags, now or at a given time; repeating it changes nothing."""
        self.set_tags(run_id, {"mgmrn.stop_reason": stop_reason, **(tags or {})})
        with translated(self.uri):
            self.client.set_terminated(run_id, status=status, end_time=time_ms)

    def close_dead_runs(self, keep: Collection[str] = ()) -> list[TrackedRun]:
        """End the runs whose driver is dead, except those of the ids in `keep`; returns the closed runs."""
        running = self.own_runs("attributes.status = 'RUNNING'")
        closed = [run for run in running if run.is_abandoned and run.run_id not in keep]
        for run in closed:
            self.finish(run.run_id, "KILLED", "driver died")
        return closed

    def delete_run(self, run: TrackedRun) -> None:
        """Move a run and its logged models to MLflow's deleted state, from which they can be restored until `mlflow gc`."""
        with translated(self.uri):
            own = f"source_run_id = '{run.run_id}'"
            for model in self.client.search_logged_models([run.experiment_id], filter_string=own):
                self.client.delete_logged_model(model.model_id)
            self.client.delete_run(run.run_id)

    def describe(self, text: str, tags: Mapping[str, str]) -> None:
        """Set the experiment's description, and tags such as those of its views."""
        with translated(self.uri):
            for key, value in {NOTE_TAG: text[:NOTE_LIMIT], **tags}.items():
                self.client.set_experiment_tag(self.experiment_id, key, value)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with translated(self.uri):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_metrics(self, run_id: str, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Add one value to each of some metrics; repeating it adds them twice."""
        self.log_epochs(run_id, [Epoch(step, metrics, timestamp_ms)])

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        from mlflow.entities import Metric

        values = ((epoch, key, value) for epoch in epochs for key, value in epoch.metrics.items())
        metrics = [Metric(key, value, epoch.timestamp_ms, epoch.step) for epoch, key, value in values]
        with translated(self.uri):
            self.client.log_batch(run_id, metrics=metrics)

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Upload the content of a folder; repeating it changes nothing."""
        with translated(self.uri):
            self.files_of(run_id).log_artifacts(str(folder))

    def log_file(self, run_id: str, path: Path, folder: str) -> None:
        with translated(self.uri):
            self.files_of(run_id).log_artifact(str(path), folder)

    def log_model(self, run_id: str, file: Path, gamma: float, example: Path) -> None:
        """Log an exported model as a pyfunc model, unless the run has one. γ is its default, the example a picture."""
        tags = self.get(run_id).tags
        if MODEL_TAG in tags:
            return
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model, infer_signature

        pictures = pd.DataFrame({"image": [example.read_bytes()]})
        answers = pd.DataFrame({"classes": [["gull"]], "scores": [[1.0]], "seen": [[True]], "attributes": [["wings"]]})
        with translated(self.uri), tempfile.TemporaryDirectory() as folder:
            # One file, since each is a request of its own.
            code = Path(folder, "mgmrn.zip")
            with zipfile.ZipFile(code, "w") as archive:
                for module in sorted((REPOSITORY / "mgmrn").rglob("*.py")):
                    archive.write(module, module.relative_to(REPOSITORY))
            # MLflow cannot continue an interrupted attempt, since it records a model's run once.
            if begun := tags.get(BEGUN_TAG):
                with contextlib.suppress(MlflowException):
                    self.client.delete_logged_model(begun)
            # MLflow's `log_model` would write to the address in the database, where the files of a moved store do not stand; it
            # would also load the model to try it, and torch with it, which takes this process seconds and 0.8 GB.
            model = self.client.create_logged_model(self.experiment_id, name="model", source_run_id=run_id)
            self.client.set_tag(run_id, BEGUN_TAG, model.model_id)
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                mlflow_model=Model(run_id=run_id, model_id=model.model_id, model_uuid=model.model_id),
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                code_paths=[str(code)],
                artifacts={"model": str(file)},
                signature=infer_signature(pictures, answers, {"gamma": float(gamma), "top_k": 5, "classes": ""}),
                input_example=pictures,
                pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
            )
            self.files_at(model.artifact_location).log_artifacts(f"{folder}/model")
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.set_tag(run_id, MODEL_TAG, model.model_uri)

    def files_at(self, address: str) -> ArtifactRepository:
        """Files at an address that MLflow gives; those of a SQLite database stand beside it, wherever it was when they were written."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if self.uri.startswith(SQLITE) and (found := _BESIDE.fullmatch(address)):
            address = f"{files_beside(self.uri)}/{found['path']}"
        return get_artifact_repository(address, self.uri)

    def files_of(self, run_id: str) -> ArtifactRepository:
        return self.files_at(self.client.get_run(run_id).info.artifact_uri)

    def _of_config(self, config_hash: str, split: str) -> list[TrackedRun]:
        wanted = f"tags.`mgmrn.config_hash` = '{config_hash}' and tags.`mgmrn.split` = '{split}'"
        return self.own_runs(f"{wanted} and tags.`mgmrn.kind` != 'link'")


def _paged(search: Callable[..., Any]) -> Iterator[Any]:
    """What the pages of a search of MLflow's client hold; a page is asked for when it is reached."""
    page = search()
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page


def _tracked(run: Run) -> TrackedRun:
    info = run.info
    tags, metrics = dict(run.data.tags), dict(run.data.metrics)
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time and info.start_time else 0.0
    # A resumed run had a pause. It is negative where the clock of the host that ended the run is behind that of the host that started it.
    known = seconds if seconds > 0 and tags.get("mgmrn.attempt", "1") == "1" else None
    return TrackedRun(info.run_id, info.run_name or "", info.status, tags, metrics, str(info.experiment_id), known)


def files_beside(uri: str) -> str:
    """Address of the folder with the artifacts and models of a SQLite database."""
    return (sqlite_file(uri).parent / "mlruns").as_uri()


def _made_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """The experiment of a name, created if missing; an inherited MLFLOW_EXPERIMENT_ID would silently lead to another one."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # An address that moves with the database, and that its server resolves; other servers decide themselves.
        location = "mlflow-artifacts:/" if uri.startswith(SQLITE) else None
        with contextlib.suppress(MlflowException):  # Another driver has just created it.
            client.create_experiment(name, location, tags=UI_TAGS)
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise TrackingError(f"the experiment {name} cannot be made", uri)
    if experiment.lifecycle_stage != "active":
        hint = "restore it, or remove it for good with mlflow gc"
        raise TrackingError(f"the experiment {name} was deleted", uri, hint)
    return experiment
