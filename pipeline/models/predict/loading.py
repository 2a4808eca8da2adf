"""A trained model by whatever a person calls it: a file, a run, or a name in the registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mgmrn.checkpoint import MODEL_FILE, LoadedModel, load_model
from mgmrn.errors import UserError
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.naming import find_run
from pipeline.tracking.registry import fetch_exported, registry_uri
from pipeline.tracking.store import TrackingStore


def open_model(name: str, tracking_uri: str) -> LoadedModel:
    """Finds and reads a model, ready for evaluation on the CPU.

    Args:
        name: path of an exported model file or of a folder that holds one; `mgmrn-CUB@champion`, `mgmrn-CUB/3` or `models:/…` in the
            registry; id or name of a run. A file goes before all else.
        tracking_uri: store that is asked for runs and registered models.

    Raises:
        UserError: when nothing is called so, the run has no model, or the file is no exported model.
        TrackingError: when the store is away, or has no such run or model.
    """
    path = Path(name)
    if path.is_dir() and (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    if path.is_file():
        return load_model(path)
    if path.suffix == ".pt" or path.is_dir():
        raise UserError(
            "there is no exported model", name, f"name a {MODEL_FILE} of a run, a run, or a registered model"
        )
    store = TrackingStore.connect(tracking_uri)
    uri = registry_uri(name) or _model_of_run(store, name)
    with tempfile.TemporaryDirectory() as folder:
        return load_model(fetch_exported(store, uri, Path(folder)))


def _model_of_run(store: TrackingStore, name: str) -> str:
    run = find_run(store, name)
    if uri := run.tags.get(MODEL_TAG):
        return uri
    hint = "name a finished run of the final split; `tune` runs and ESZSL log none"
    raise UserError(f"the run {run.name} has logged no model", "RUN", hint)
