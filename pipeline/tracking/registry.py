"""The model registry: versions of a model, their aliases, and the exported model file, never a pickle, behind a name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking.connection import translated
from pipeline.tracking.store import TrackingStore

EXPORTED = "artifacts/model.pt"
"""Path of the exported file inside a logged model."""
CANDIDATE, CHAMPION = "candidate", "champion"
_VERSION = re.compile(r"[^@/:]+(@[^@/:]+|/\d+)")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    run_id: str
    aliases: tuple[str, ...] = ()


def registry_uri(name: str) -> str | None:
    """`models:/…` for a name in the registry (`NAME@ALIAS`, `NAME/VERSION`, `models:/…`); None for any other name."""
    if name.startswith("models:/"):
        return name
    return f"models:/{name}" if _VERSION.fullmatch(name) else None


def fetch_exported(store: TrackingStore, model_uri: str, folder: Path) -> Path:
    """Download the exported file of a logged or registered model (`models:/…`) into a folder; returns its path."""
    import mlflow
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    mlflow.set_tracking_uri(store.uri)
    with translated(store.uri):
        address = ModelsArtifactRepository.get_underlying_uri(model_uri)
        return Path(store.files_at(address).download_artifacts(EXPORTED, str(folder)))


def version_of_alias(store: TrackingStore, name: str, alias: str) -> Version | None:
    """Version of a model that an alias refers to; None without such a model or alias."""
    return next((one for one in versions(store, name) if alias in one.aliases), None)


def versions(store: TrackingStore, name: str) -> list[Version]:
    """All versions of a model, the latest first; empty without such a model."""
    with translated(store.uri):
        # A search returns no aliases.
        found = [one.version for one in store.client.search_model_versions(f"name = '{name}'")]
        whole = [store.client.get_model_version(name, str(number)) for number in found]
    made = [Version(name, str(one.version), str(one.run_id), tuple(sorted(one.aliases))) for one in whole]
    return sorted(made, key=lambda one: int(one.number), reverse=True)


def registered_runs(store: TrackingStore) -> set[str]:
    """Ids of the runs of all versions of all models."""
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    with translated(store.uri):
        return {str(one.run_id) for one in mlflow.search_model_versions()}


def register(
    store: TrackingStore, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> Version:
    """Version of a run's logged model (`models:/ID`), registered unless it is, with these tags; a new model gets the description."""
    known = next((one for one in versions(store, name) if one.run_id == run_id), None)
    if known is not None:
        return known
    import mlflow

    mlflow.set_tracking_uri(store.uri)  # MLflow looks for the logged model there, whatever address the client has.
    with translated(store.uri):
        if not store.client.search_registered_models(f"name = '{name}'"):
            store.client.create_registered_model(name, description=description)
        made = store.client.create_model_version(
            name, model_uri, run_id=run_id, tags=dict(tags), model_id=model_uri.removeprefix("models:/")
        )
    return Version(name, str(made.version), run_id)


def set_alias(store: TrackingStore, version: Version, alias: str) -> None:
    """Make an alias refer to a version; a champion is no candidate any more."""
    with translated(store.uri):
        store.client.set_registered_model_alias(version.name, alias, version.number)
        if alias == CHAMPION and CANDIDATE in version.aliases:
            store.client.delete_registered_model_alias(version.name, CANDIDATE)
