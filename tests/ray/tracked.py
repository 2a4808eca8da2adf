"""Content of the tracking store of a test, read through MLflow's own client; files, through the project's."""

from collections.abc import Iterator

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.tracking.connection import quieten_mlflow
from pipeline.tracking.store import TrackingStore
from tests.ray.command import Place


def client_of(place: Place) -> MlflowClient:
    quieten_mlflow()
    return MlflowClient(tracking_uri=place.tracking_uri)


def runs_of(client: MlflowClient, name: str = "mgmrn/train") -> list[Run]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None, f"no experiment {name}"
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def children_of(client: MlflowClient) -> list[Run]:
    """Runs that a launch made, oldest first."""
    return [run for run in runs_of(client) if "mlflow.parentRunId" in run.data.tags]


def steps_of(client: MlflowClient, run: Run) -> dict[str, list[int]]:
    """Steps of every metric in the order in which they were logged."""
    return {key: [m.step for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}


def assert_epochs_are_logged_once(client: MlflowClient, run: Run, epochs: int, *keys: str) -> None:
    """Check that some metrics have every epoch in its order, and that no metric has a step twice."""
    steps = steps_of(client, run)
    for key in keys:
        assert steps[key] == list(range(1, epochs + 1)), key
    assert all(len(set(found)) == len(found) for found in steps.values())


def files_of(client: MlflowClient, run: Run) -> set[str]:
    files = TrackingStore.open(client.tracking_uri).files_of(run.info.run_id)

    def below(folder: str | None) -> Iterator[str]:
        for entry in files.list_artifacts(folder):
            yield from below(entry.path) if entry.is_dir else [entry.path]

    return set(below(None))
