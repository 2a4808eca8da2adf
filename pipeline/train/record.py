"""The files that a finished run leaves in the tracking store, made from its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from mgmrn.data.xlsa17 import Benchmark
from pipeline.compose import ComposedConfig
from pipeline.tracking.artifacts import EvaluationData, write_evaluation, write_provenance
from pipeline.tracking.environment import environment, git_state
from pipeline.train.fit import Fitted
from pipeline.train.spec import RunSpec


def write_record(spec: RunSpec, composed: ComposedConfig, benchmark: Benchmark, ended: Fitted) -> Path:
    """Writes `eval/`, `config/` and `env/`; returns their folder, made anew."""
    folder = spec.artifacts_folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_evaluation(folder, _evaluation_data(spec, benchmark, ended))
    write_provenance(folder, composed, environment(), git_state())
    return folder


def _evaluation_data(spec: RunSpec, benchmark: Benchmark, ended: Fitted) -> EvaluationData:
    evaluation = ended.evaluation
    lists = benchmark.lists
    listed = (
        lists["trainval_loc"]
        if spec.split == "tune"
        else np.concatenate([lists["trainval_loc"], lists["test_unseen_loc"]])
    )
    classes = np.unique(benchmark.labels[listed])
    return EvaluationData(
        class_names=[benchmark.class_names[i] for i in classes],
        seen_classes=evaluation.seen_classes,
        seen_scores=evaluation.seen_scores,
        seen_labels=evaluation.seen_labels,
        seen_ids=evaluation.seen_ids,
        unseen_scores=evaluation.unseen_scores,
        unseen_labels=evaluation.unseen_labels,
        unseen_ids=evaluation.unseen_ids,
        image_names=benchmark.image_files,
        gamma=evaluation.result.gamma,
        note="drawn stand-in pictures: no result" if benchmark.standin else "",
    )
