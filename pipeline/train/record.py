"""The files that a finished run leaves in the tracking store, made from its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from mgmrn.data.splits import SplitData, evaluation_images
from pipeline.tracking.artifacts import EvaluationNames, write_evaluation, write_provenance
from pipeline.tracking.environment import environment, git_state
from pipeline.train.cell import Cell
from pipeline.train.fit import Fitted
from pipeline.train.spec import RunSpec


def write_record(spec: RunSpec, cell: Cell, ended: Fitted) -> Path:
    """Writes `eval/`, `config/` and `env/`; returns their folder, made anew."""
    folder = spec.artifacts_folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_evaluation(folder, ended.evaluation, _names(cell.data))
    write_provenance(folder, cell.composed, environment(), git_state())
    return folder


def _names(data: SplitData) -> EvaluationNames:
    images = evaluation_images(data)
    return EvaluationNames(
        classes=data.classes.names,
        images=dict(zip(images.ids.tolist(), images.files, strict=True)),
    )
