"""The model registry: which version of a model an alias stands for, and the exported model file behind a name.

A logged model holds what `mgmrn.checkpoint.export_model` wrote; that file is all that is read of it here, never a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking.store import TrackingStore

EXPORTED = "artifacts/model.pt"
"""Inside a logged model."""
CANDIDATE, CHAMPION = "candidate", "champion"
_VERSION = re.compile(r"(?P<name>[^@/:]+)(@(?P<alias>[^@/:]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    run_id: str
    """The run that trained it."""
    aliases: tuple[str, ...] = ()


def registry_uri(name: str) -> str | None:
    """`models:/…` for what names something in the registry (`NAME@ALIAS`, `NAME/VERSION`, `models:/…`); None for all else."""
    if name.startswith("models:/"):
        return name
    return f"models:/{name}" if _VERSION.fullmatch(name) else None


def fetch_exported(store: TrackingStore, model_uri: str, folder: Path) -> Path:
    """Brings the exported model file of a logged or registered model.

    Args:
        store: where it is.
        model_uri: `models:/…`.
        folder: where a copy may be put.

    Raises:
        TrackingError: when there is no such model, or the store is away.
    """
    import mlflow
    from mlflow.artifacts import download_artifacts

    mlflow.set_tracking_uri(store.uri)
    with store.translated():
        # The whole model: MLflow takes a path behind a logged model's id for a registered model's name.
        return Path(download_artifacts(model_uri, dst_path=str(folder))) / EXPORTED


def version_of_alias(store: TrackingStore, name: str, alias: str) -> Version | None:
    """What an alias of a model stands for; None without such a model or alias."""
    return next((one for one in versions(store, name) if alias in one.aliases), None)


def versions(store: TrackingStore, name: str) -> list[Version]:
    """All versions of a model, the latest first; none where there is no such model."""
    with store.translated():
        if not store.client.search_registered_models(f"name = '{name}'"):
            return []
        aliases = dict(store.client.get_registered_model(name).aliases)
        found = store.client.search_model_versions(f"name = '{name}'")
    made = [
        Version(
            name,
            str(one.version),
            str(one.run_id),
            tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(one.version))),
        )
        for one in found
    ]
    return sorted(made, key=lambda one: int(one.number), reverse=True)


def register(
    store: TrackingStore, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> Version:
    """A version for a run's model; the one that there is, when it was registered before.

    Args:
        store: where both are.
        name: of the registered model, made when there is none.
        model_uri: `models:/ID` of the logged model.
        run_id: the run that logged it.
        tags: of a new version.
        description: of a new model.

    Raises:
        TrackingError: when the store refuses.
    """
    known = versions(store, name)
    if known_version := next((one for one in known if one.run_id == run_id), None):
        return known_version
    import mlflow

    mlflow.set_tracking_uri(store.uri)  # Where MLflow looks for the logged model, whatever the client was told.
    with store.translated():
        if not store.client.search_registered_models(f"name = '{name}'"):
            store.client.create_registered_model(name, description=description)
        made = store.client.create_model_version(
            name, model_uri, run_id=run_id, tags=dict(tags), model_id=model_uri.removeprefix("models:/")
        )
    return Version(name, str(made.version), run_id)


def set_alias(store: TrackingStore, version: Version, alias: str) -> None:
    """Makes an alias stand for a version, whatever it stood for before."""
    with store.translated():
        store.client.set_registered_model_alias(version.name, alias, version.number)


def remove_alias(store: TrackingStore, version: Version, alias: str) -> None:
    """Takes an alias away."""
    with store.translated():
        store.client.delete_registered_model_alias(version.name, alias)
