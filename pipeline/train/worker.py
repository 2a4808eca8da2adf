"""Worker of a run: the work of each rank, from its spec to its last checkpoint, under Ray Train or in the process of a trial.

No worker uses the tracking store: its caller notes the metrics of each epoch, and rank 0 writes checkpoints into the run's storage.
"""

import gc
import itertools
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from mgmrn.checkpoint import TrainedModel, export_model, load_checkpoint, save_checkpoint
from mgmrn.config import ESZSLConfig, ExperimentConfig
from mgmrn.data.feature_cache import Progress
from mgmrn.data.loading import evaluation_loader
from mgmrn.data.resident_maps import drop_maps
from mgmrn.data.seal import sealed
from mgmrn.data.splits import FinalData, Images, TuneData, evaluation_images, load_final, load_tune
from mgmrn.data.xlsa17 import attribute_names
from mgmrn.engine import EpochStats, NonFiniteLossError, Trainer, build_trainer, evaluate, gather_rows, train_epoch
from mgmrn.errors import ResourceError, UserError
from mgmrn.eszsl import eszsl_scores, prepare_eszsl
from mgmrn.feed import EVALUATION_BATCH, Feed, Share, cached_maps, seen_targets
from mgmrn.model.backbone import build_backbone
from mgmrn.protocol import PREFIX, Evaluation, evaluate_split
from pipeline.spool import Spool
from pipeline.storage import StoragePath, explained
from pipeline.train import checkpoints
from pipeline.train.messages import Failure, note_taker, record_failure, recorded_failure, reserve_room
from pipeline.train.spec import EVALUATION_FILE, MODEL_FILE, RunSpec


@dataclass(frozen=True)
class Rank:
    """One process of the run."""

    spec: RunSpec
    data: TuneData | FinalData
    share: Share
    device: torch.device
    begun: float
    """Time (`time.monotonic()`) at which it began to read data."""


def train_epochs(spec: RunSpec, share: Share, device: torch.device) -> Iterator[dict[str, float]]:
    """Metrics of each epoch that one rank of a run trains.

    An epoch's metrics come when its checkpoint is whole, and training goes on when the caller has noted them. A failure that a retry cannot
    mend is recorded in the run's folder; it is raised as well where other ranks wait for this one and must be torn down. Nothing is
    trained where an earlier attempt recorded one.
    """
    if recorded_failure(spec.failure_file):
        return
    try:
        yield from _epochs(spec, share, device)
    except (UserError, ResourceError, NonFiniteLossError, torch.OutOfMemoryError) as error:
        try:
            record_failure(spec.failure_file, _failure(error))
        except OSError:
            raise error from None  # Without a note, the run must not look as if it had come to its end.
        if share.world_size > 1:
            raise


def _failure(error: UserError | ResourceError | NonFiniteLossError | torch.OutOfMemoryError) -> Failure:
    if isinstance(error, UserError):
        return Failure("bad-input", error.message, error.where, error.hint)
    if isinstance(error, ResourceError):
        return Failure.of_resources(error)
    if isinstance(error, NonFiniteLossError):
        return Failure("non-finite-loss", str(error))
    hint = "use a smaller sampling batch, optimiser.accumulate, or more workers"
    return Failure("out-of-memory", str(error).splitlines()[0], hint=hint)


def _epochs(spec: RunSpec, share: Share, device: torch.device) -> Iterator[dict[str, float]]:
    if share.rank == 0:
        with explained(spec.run_folder):
            reserve_room(spec.failure_file)
    torch.backends.cudnn.benchmark = True  # cuDNN times its convolutions at the first call for each shape.
    torch.set_num_threads(spec.cpus_per_worker)
    begun = time.monotonic()
    with sealed() if spec.split == "tune" else nullcontext():
        load = load_tune if spec.split == "tune" else load_final
        rank = Rank(spec, load(spec.data_root, spec.config.benchmark), share, device, begun)
        if isinstance(spec.config.model, ESZSLConfig):
            evaluation, metrics = fit_on_split(spec, rank.data, rank.device, note_taker(Spool(spec.run_folder)))
            yield from _noted(rank, {"epoch": 1, "epochs": 1, **metrics, **evaluation.metrics}, evaluation)
            return
        try:
            yield from _train(rank)
            return
        except torch.OutOfMemoryError:
            if share.world_size > 1 or not drop_maps():
                raise
        # Out of the handler, which keeps the network that did not fit.
        gc.collect()
        torch.cuda.empty_cache()
        sentence = "the GPU's memory ran out: the maps stay on the host, and training goes on from the last checkpoint"
        Spool(spec.run_folder).append_note(sentence)
        yield from _train(rank)


def _train(rank: Rank) -> Iterator[dict[str, float]]:
    spec, data = rank.spec, rank.data
    torch.manual_seed(spec.config.seed)  # Every rank draws the same weights.
    if rank.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(rank.device)
    loader_workers = spec.cpus_per_worker if rank.device.type == "cuda" else 0
    note = note_taker(Spool(spec.run_folder))
    feed = Feed(spec.config, data, spec.cache_root, rank.share, rank.device, loader_workers, note)
    if feed.told:
        Spool(spec.run_folder).append_note(feed.told)
    state = None
    if stored := _folder_to_go_on_from(rank):
        with stored.fetched() as folder:
            state = load_checkpoint(folder, spec.identity)
    epochs_left = spec.epochs - (int(state["epoch"]) if state else 0)
    trainer = build_trainer(
        feed.network,
        torch.from_numpy(data.classes.attributes[data.classes.seen_ids]),
        spec.config,
        global_batch=feed.global_batch,
        steps_per_epoch=feed.steps_per_epoch,
        device=rank.device,
        world_size=rank.share.world_size,
        steps_left=epochs_left * feed.steps_per_epoch,
    )
    if state:
        trainer.load_state_dict(state)
        del state
    start_seconds = time.monotonic() - rank.begun
    while trainer.epoch < spec.epochs:
        epoch = trainer.epoch
        _seed_epoch(spec.config.seed, epoch, rank.share.rank)
        stats = train_epoch(trainer, feed.train_batches(epoch))
        evaluation: Evaluation | None = None
        figures: dict[str, float] = {}
        trained = time.monotonic()
        if spec.split == "tune" or trainer.epoch == spec.epochs:
            evaluation, figures = _evaluate(rank, trainer, feed)
        seconds = {"perf/start_s": start_seconds, "perf/evaluation_s": time.monotonic() - trained}
        yield from _noted(rank, _metrics(rank, trainer, stats) | figures | seconds, evaluation, trainer, feed)


def _folder_to_go_on_from(rank: Rank) -> StoragePath | None:
    """Folder of the checkpoint to continue from; rank 0 chooses it, so that no two ranks continue from different epochs."""
    name = None
    if rank.share.rank == 0:
        folder, spool = rank.spec.run_folder, Spool(rank.spec.run_folder)
        last_epoch = max(spool.epochs(), default=0)
        checkpoints.remove_after(folder, last_epoch)
        found = checkpoints.latest_whole(folder, last_epoch, spool.append_note)
        name = found.folder.name if found else None
    if rank.share.world_size > 1:
        from ray.train.collective import broadcast_from_rank_zero

        name = broadcast_from_rank_zero(name)
    return rank.spec.run_folder / name if name else None


def _seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seeds an epoch by its number, so that a resumed run draws what an undisturbed one draws."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1))


def _evaluate(rank: Rank, trainer: Trainer, feed: Feed) -> tuple[Evaluation | None, dict[str, float]]:
    """Evaluation of the split and its metrics, on rank 0; every rank scores its share."""
    attributes = torch.from_numpy(rank.data.classes.attributes)
    config, views = rank.spec.config, (False, True) if rank.spec.config.mirror_scores else (False,)
    found = [evaluate(trainer.network, feed.evaluation_inputs(view), attributes, config, rank.device) for view in views]
    evaluation: Evaluation | None = None
    metrics: dict[str, float] = {}
    for level in found[0]:
        scores = gather_rows(np.mean([one[level] for one in found], axis=0))
        if scores is None:
            continue
        evaluated = evaluate_split(rank.data, scores, rank.spec.gamma)
        if level is None:
            evaluation = evaluated
            metrics |= evaluated.metrics
        else:
            metrics[f"{PREFIX[rank.data.split]}/ausuc/{level}"] = evaluated.result.ausuc
    return evaluation, metrics


def _metrics(rank: Rank, trainer: Trainer, stats: EpochStats) -> dict[str, float]:
    return {
        "epoch": trainer.epoch,
        "epochs": rank.spec.epochs,
        "moment": time.time(),
        **{f"train/{name}": value for name, value in stats.loss.items()},
        "train/lr": float(trainer.scheduler.get_last_lr()[-1]),
        "perf/images_per_s": stats.images * rank.share.world_size / stats.seconds,
        "perf/epoch_s": stats.seconds,
        "perf/world_size": rank.share.world_size,
        "perf/step_ms": 1000 * stats.seconds / max(stats.steps, 1),
        "perf/wait_fraction": stats.wait_seconds / stats.seconds,
        **_memory(rank.device),
        "perf/parameters": sum(p.numel() for p in trainer.network.parameters() if p.requires_grad),
    }


def _noted(
    rank: Rank,
    metrics: dict[str, float],
    evaluation: Evaluation | None,
    trainer: Trainer | None = None,
    feed: Feed | None = None,
) -> Iterator[dict[str, float]]:
    """Metrics of an epoch. Rank 0 writes the checkpoint before, with the evaluation and, if it may count in the end, the model, and prunes
    others after.
    """
    if rank.share.rank:
        yield metrics
        return
    spec, classes, epoch = rank.spec, rank.data.classes, int(metrics["epoch"])
    counting = checkpoints.counting_epoch(spec.split, {**Spool(spec.run_folder).epochs(), epoch: metrics})
    with explained(spec.run_folder), checkpoints.new_checkpoint(spec.run_folder, epoch) as folder:
        if evaluation is not None:
            evaluation.save(folder / EVALUATION_FILE)
        if trainer is not None:
            save_checkpoint(folder, trainer.state_dict(), spec.identity)
        if feed is not None and evaluation is not None and epoch == counting and spec.exports_model:
            model = TrainedModel(
                network=feed.image_model,
                config=spec.config,
                class_names=classes.names,
                class_attributes=torch.from_numpy(classes.attributes),
                seen=classes.seen,
                gamma=evaluation.result.gamma,
                attribute_names=attribute_names(spec.data_root, spec.config.benchmark, classes.attributes.shape[1]),
            )
            export_model(folder / MODEL_FILE, model)
    yield metrics
    checkpoints.prune(spec.run_folder, checkpoints.worth_keeping(spec.run_folder, epoch, counting))


def _memory(device: torch.device) -> dict[str, float]:
    """Largest memory so far, of the device and how much that has on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return {"perf/peak_mem_mb": torch.cuda.max_memory_allocated(device) / 2**20, "perf/gpu_mem_mb": total / 2**20}
    return {"perf/peak_mem_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def fit_on_split(
    spec: RunSpec, data: TuneData | FinalData, device: torch.device, progress: Progress
) -> tuple[Evaluation, dict[str, float]]:
    """Fits and evaluates ESZSL, on `tune` with the regularisers of the largest AUSUC, which are returned as metrics."""
    model = spec.config.model
    assert isinstance(model, ESZSLConfig)
    train, evaluation = pooled_features(spec, data, device, progress)
    targets = seen_targets(data.train, data.classes).numpy()
    attributes = data.classes.attributes[data.classes.seen_ids]
    solve = prepare_eszsl(train, targets, attributes)

    def candidates() -> Iterator[tuple[Evaluation, float, float]]:
        chosen = spec.calibration.eszsl_log10 if spec.calibration else None
        tried: Iterable[tuple[float, float]] = [chosen or (0.0, 0.0)]
        if spec.split == "tune":
            tried = itertools.product(model.log10_gamma, model.log10_lambda)
        for gamma, lam in tried:
            mapping = solve(10.0**gamma, 10.0**lam)
            scores = eszsl_scores(evaluation, mapping, data.classes.attributes)
            yield evaluate_split(data, scores, spec.gamma), gamma, lam

    best, gamma, lam = max(candidates(), key=lambda candidate: candidate[0].result.ausuc)
    return best, {"train/log10_gamma": gamma, "train/log10_lambda": lam}


def pooled_features(
    spec: RunSpec, data: TuneData | FinalData, device: torch.device, progress: Progress
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "M C"]]:
    """Globally averaged maps of the training and the evaluation images, in rows of unit length."""
    model = spec.config.model
    assert isinstance(model, ESZSLConfig)
    if spec.config.cache_features:
        parts = cached_maps(spec.config, data, spec.cache_root, device, progress)
        rows = [part.pooled(model.level) for part in parts]
    else:
        both = (data.train, evaluation_images(data))
        rows = [_pooled_from_pictures(spec.config, images, device) for images in both]
    train, evaluation = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in rows)
    return train, evaluation


@torch.inference_mode()
def _pooled_from_pictures(config: ExperimentConfig, images: Images, device: torch.device) -> Float[np.ndarray, "N C"]:
    assert isinstance(config.model, ESZSLConfig)
    backbone = build_backbone(config.model.backbone, (config.model.level,)).to(device).eval()
    rows = [
        backbone(pictures.to(device))[config.model.level].mean(dim=(2, 3)).cpu()
        for pictures in evaluation_loader(images, config.benchmark.images, EVALUATION_BATCH, 0)
    ]
    return torch.cat(rows).numpy()
