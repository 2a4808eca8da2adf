"""ESZSL on the features and splits that the networks get: fitted in closed form, its two regularisers chosen on `tune`."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Float

from mgmrn.config import ESZSLConfig, ExperimentConfig
from mgmrn.data.decoded import PictureFiles
from mgmrn.data.images import side_for_evaluation
from mgmrn.data.kept import Progress
from mgmrn.data.loading import evaluation_loader
from mgmrn.data.splits import FinalData, Images, TuneData, evaluation_images
from mgmrn.eszsl import eszsl_scores, prepare_eszsl
from mgmrn.feed import seen_targets
from mgmrn.model.backbone import build_backbone
from mgmrn.protocol import Evaluation, evaluate_split
from mgmrn.sources import EVALUATION_BATCH, cached_maps
from pipeline.train.spec import RunSpec


def fit_on_split(
    spec: RunSpec, data: TuneData | FinalData, device: torch.device, progress: Progress
) -> tuple[Evaluation, dict[str, float]]:
    """Fits, scores and, on `tune`, chooses the regularisers with the largest AUSUC.

    Returns:
        The evaluation, and the chosen regularisers as metrics `train/log10_gamma`, `train/log10_lambda`.
    """
    model = spec.config.model
    assert isinstance(model, ESZSLConfig)
    train, evaluation = pooled_features(spec, data, device, progress)
    targets = seen_targets(data.train, data.classes).numpy()
    attributes = data.classes.attributes[data.classes.seen_ids]
    chosen = spec.calibration.eszsl_log10 if spec.calibration else None
    grid = [chosen] if chosen else list(itertools.product(model.log10_gamma, model.log10_lambda))
    if spec.split == "final" and not chosen:
        grid = [(0.0, 0.0)]
    problem = prepare_eszsl(train, targets, attributes)
    best: tuple[Evaluation, tuple[float, float]] | None = None
    for gamma, lam in grid:
        mapping = problem.solve(gamma=10.0**gamma, lambda_=10.0**lam)
        scores = eszsl_scores(evaluation, mapping, data.classes.attributes)
        found = evaluate_split(data, scores, spec.gamma)
        if best is None or found.result.ausuc > best[0].result.ausuc:
            best = found, (gamma, lam)
    assert best is not None
    return best[0], {"train/log10_gamma": best[1][0], "train/log10_lambda": best[1][1]}


def pooled_features(
    spec: RunSpec, data: TuneData | FinalData, device: torch.device, progress: Progress
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "M C"]]:
    """Globally averaged maps of the training and of the evaluation images, rows of unit length."""
    model = spec.config.model
    assert isinstance(model, ESZSLConfig)
    if spec.config.cache_features:
        parts = cached_maps(spec.config, data, spec.cache_root, device, progress)
        train, evaluation = (part.pooled(model.level) for part in parts)
    else:
        train, evaluation = (
            _pooled_from_pictures(spec.config, images, device) for images in (data.train, evaluation_images(data))
        )
    return _unit(train), _unit(evaluation)


@torch.inference_mode()
def _pooled_from_pictures(config: ExperimentConfig, images: Images, device: torch.device) -> Float[np.ndarray, "N C"]:
    assert isinstance(config.model, ESZSLConfig)
    backbone = build_backbone(config.model.backbone, (config.model.level,)).to(device).eval()
    files = PictureFiles(images, side_for_evaluation(config.benchmark.images))
    rows = [
        backbone(pictures.to(device))[config.model.level].mean(dim=(2, 3)).cpu()
        for pictures in evaluation_loader(files, config.benchmark.images, EVALUATION_BATCH, 0)
    ]
    return torch.cat(rows).numpy()


def _unit(rows: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
