"""The files that a finished run leaves in the tracking store, made from its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from mgmrn.data.xlsa17 import Benchmark
from pipeline.compose import ComposedConfig
from pipeline.tracking.artifacts import EvaluationNames, write_evaluation, write_provenance
from pipeline.tracking.environment import environment, git_state
from pipeline.train.fit import Fitted
from pipeline.train.spec import RunSpec


def write_record(spec: RunSpec, composed: ComposedConfig, benchmark: Benchmark, ended: Fitted) -> Path:
    """Writes `eval/`, `config/` and `env/`; returns their folder, made anew."""
    folder = spec.artifacts_folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_evaluation(folder, ended.evaluation, _names(spec, benchmark))
    write_provenance(folder, composed, environment(), git_state())
    return folder


def _names(spec: RunSpec, benchmark: Benchmark) -> EvaluationNames:
    lists = benchmark.lists
    listed = (
        lists["trainval_loc"]
        if spec.split == "tune"
        else np.concatenate([lists["trainval_loc"], lists["test_unseen_loc"]])
    )
    return EvaluationNames(
        classes=[benchmark.class_names[i] for i in np.unique(benchmark.labels[listed])],
        images=benchmark.image_files,
        note="drawn stand-in pictures: no result" if benchmark.standin else "",
    )
