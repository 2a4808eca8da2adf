"""Logs an exported model so that `mlflow.pyfunc.load_model` and `mlflow models serve` can classify pictures with it."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.environment import REPOSITORY

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_TAG = "mgmrn.model_uri"
BEGUN_TAG = "mgmrn.model_id"
REQUIREMENTS = ("torch", "torchvision", "numpy", "scipy", "pydantic", "jaxtyping", "pillow", "pandas", "mlflow")


def log_image_model(
    client: MlflowClient,
    uri: str,
    experiment_id: str,
    run_id: str,
    model_file: Path,
    gamma: float,
    example: Path,
) -> None:
    """Logs a model with a run; a run that has one keeps it.

    Args:
        client: connected to the store at `uri`.
        uri: address of the store.
        experiment_id: experiment of the run.
        run_id: the run.
        model_file: what `mgmrn.checkpoint.export_model` wrote.
        gamma: default of the param `gamma`, the γ that the run was evaluated at.
        example: a picture for the input example.

    Raises:
        MlflowException: when the store is away.
    """
    tags = client.get_run(run_id).data.tags
    if MODEL_TAG in tags:
        return
    import mlflow
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    mlflow.set_tracking_uri(uri)
    # Made first, or MLflow would put it into the default experiment and its files into the working folder.
    # MLflow notes a model's run once: an attempt that was cut off cannot be continued, and its model goes.
    if begun := tags.get(BEGUN_TAG):
        with suppress(MlflowException):
            client.delete_logged_model(begun)
    model_id = str(client.create_logged_model(experiment_id, name="model", source_run_id=run_id).model_id)
    client.set_tag(run_id, BEGUN_TAG, model_id)
    info = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=model_id,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        code_paths=[str(REPOSITORY / "mgmrn")],
        artifacts={"model": str(model_file)},
        signature=_signature(gamma),
        input_example=_input_example(example),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    )
    client.set_tag(run_id, MODEL_TAG, info.model_uri)


def _signature(gamma: float) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "classes"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(Array(DataType.boolean), "seen"),
                ColSpec(Array(DataType.string), "attributes"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("gamma", DataType.double, gamma),
                ParamSpec("top_k", DataType.integer, 5),
                ParamSpec("classes", DataType.string, ""),
            ]
        ),
    )


def _input_example(picture: Path) -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [picture.read_bytes()]})
