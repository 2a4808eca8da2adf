"""Logs an exported model so that `mlflow.pyfunc.load_model` and `mlflow models serve` can classify pictures with it."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.environment import REPOSITORY

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_TAG = "mgmrn.model_uri"
BEGUN_TAG = "mgmrn.model_id"
REQUIREMENTS = ("torch", "torchvision", "numpy", "scipy", "pydantic", "jaxtyping", "pillow", "pandas", "mlflow")


def log_image_model(
    client: MlflowClient, uri: str, experiment_id: str, run_id: str, model_file: Path, gamma: float, example: Path
) -> None:
    """Log a file of `mgmrn.checkpoint.export_model` with a run, unless the run has a model.

    `uri` is the address of the client's store, `gamma` the default of the param of this name, `example` a picture.
    """
    tags = client.get_run(run_id).data.tags
    if MODEL_TAG in tags:
        return
    import mlflow
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, infer_signature

    mlflow.set_tracking_uri(uri)
    # MLflow cannot continue an interrupted attempt, since it records a model's run once.
    if begun := tags.get(BEGUN_TAG):
        with suppress(MlflowException):
            client.delete_logged_model(begun)
    # Without a model made here, MLflow would use the default experiment and put files into the working folder.
    model_id = str(client.create_logged_model(experiment_id, name="model", source_run_id=run_id).model_id)
    client.set_tag(run_id, BEGUN_TAG, model_id)
    pictures = pd.DataFrame({"image": [example.read_bytes()]})
    answers = pd.DataFrame({"classes": [["gull"]], "scores": [[1.0]], "seen": [[True]], "attributes": [["wings"]]})
    info = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=model_id,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        code_paths=[str(REPOSITORY / "mgmrn")],
        artifacts={"model": str(model_file)},
        signature=infer_signature(pictures, answers, {"gamma": float(gamma), "top_k": 5, "classes": ""}),
        input_example=pictures,
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    )
    client.set_tag(run_id, MODEL_TAG, info.model_uri)
