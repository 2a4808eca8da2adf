"""Training and evaluation of one network, in one process or as one rank of several.

B images of a rank, C channels, h w grid, S attributes, U classes, T loss terms, N rows of scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from mgmrn.config import ExperimentConfig, Level, LossConfig, OptimiserConfig, ScheduleConfig
from mgmrn.device import autocast, choose_passes, compile_passes, record_graph
from mgmrn.errors import UserError
from mgmrn.losses import LossTerms, zsl_loss
from mgmrn.model.network import NetworkOutput, class_scores, levels_of

Inputs = Tensor | dict[Level, Tensor]
"""Images `B 3 H W`, or maps `B C h w` of every level."""


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch."""

    inputs: Inputs
    targets: Int[Tensor, " B"]
    """Index among the *seen* classes."""
    ids: Int[np.ndarray, " B"]
    """Positions in the benchmark's image list, for errors."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; float32, images channels-last."""
        return Batch(_to_device(self.inputs, device), self.targets.to(device, non_blocking=True), self.ids)

    def split(self, parts: int) -> Iterator[Batch]:
        """At most `parts` micro-batches of nearly equal size."""
        for rows in np.array_split(np.arange(len(self.ids)), min(parts, len(self.ids))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            inputs = self.inputs
            taken = inputs[part] if isinstance(inputs, Tensor) else {level: x[part] for level, x in inputs.items()}
            yield Batch(taken, self.targets[part], self.ids[part])

    @property
    def tensors(self) -> list[Tensor]:
        return [*([self.inputs] if isinstance(self.inputs, Tensor) else self.inputs.values()), self.targets]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the error names the images of the step, since a broken picture is one cause."""

    def __init__(self, step: int, ids: Sequence[int]) -> None:
        shown = ", ".join(str(i) for i in ids[:16]) + (", …" if len(ids) > 16 else "")
        super().__init__(
            f"the loss became non-finite at step {step} of the epoch, on images {shown} of the benchmark's list; "
            "lower the learning rate, set optimiser.clip_norm, or look at those images"
        )
        self.ids = tuple(ids)


class TrainingObjective(nn.Module):
    """Network and loss as one module: a data-parallel wrapper needs one forward pass per backward pass."""

    def __init__(
        self, network: nn.Module, seen_attributes: Float[Tensor, "U S"], loss: LossConfig, global_batch: int, ranks: int
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.global_batch = global_batch
        self.ranks = ranks
        self.register_buffer("seen_attributes", seen_attributes, persistent=False)

    def forward(self, inputs: Inputs, targets: Int[Tensor, " B"], level: Level | None) -> LossTerms:
        output = self.network(inputs) if level is None else cast(Any, self.network).forward_level(inputs, level)
        classes, batch = cast(Tensor, self.seen_attributes), self.global_batch
        return zsl_loss(output, targets, classes, self.loss, global_batch=batch, world_size=self.ranks)


@dataclass(frozen=True)
class EpochStats:
    """Figures of one epoch of training on this rank."""

    loss: dict[str, float]
    """Mean over the steps of each loss term, summed over levels."""
    images: int
    seconds: float
    wait_seconds: float
    """Part of `seconds` spent waiting for data."""
    steps: int


Recordings = dict[tuple[Level | None, int], Callable[[Batch], Tensor]]
"""Recorded passes by level and number of images, each made at its first step."""


@dataclass
class Trainer:
    """A network in training, with all state that an exact resume needs."""

    network: nn.Module
    objective: nn.Module
    optimiser: Optimizer
    scheduler: LRScheduler
    config: ExperimentConfig
    device: torch.device
    epoch: int = 0
    """Number of complete epochs."""
    recordings: Recordings | None = None
    """None where passes are not recorded."""

    def state_dict(self) -> dict[str, Any]:
        """Network (the trainable part and its buffers), optimiser, scheduler and epoch."""
        parts: dict[str, Any] = {"network": self.network, "optimiser": self.optimiser, "scheduler": self.scheduler}
        return {**{name: part.state_dict() for name, part in parts.items()}, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch = int(state["epoch"])


def build_trainer(
    network: nn.Module,
    seen_attributes: Float[Tensor, "U S"],
    config: ExperimentConfig,
    *,
    global_batch: int,
    steps_per_epoch: int,
    device: torch.device,
    world_size: int = 1,
    steps_left: int | None = None,
) -> Trainer:
    """The network on its device with loss, optimiser and schedule, data-parallel over several ranks.

    `network` is a head on maps, or an ImageModel on images; `global_batch` counts the images of one step over all ranks;
    `steps_left`, by default the whole schedule, decides what `compile: auto` is worth. Above one rank torch.distributed
    must be initialised. Raises UserError when a rank would have fewer images of a global batch than micro-batches.
    """
    accumulate, smallest = config.optimiser.accumulate, global_batch // world_size
    if accumulate > smallest:  # Ranks with different numbers of micro-batches would deadlock.
        raise UserError(
            f"{accumulate} micro-batches were asked for, but one of {world_size} workers has {smallest} images of a "
            f"global batch of {global_batch}",
            "optimiser.accumulate",
            "lower it, use fewer workers, or a larger batch",
        )
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective: nn.Module = TrainingObjective(network, seen_attributes, config.loss, global_batch, world_size).to(device)
    sequential = config.schedule.order == "sequential"
    left = config.schedule.epochs * steps_per_epoch if steps_left is None else steps_left
    chosen = config.schedule.compile
    passes = choose_passes(chosen, left, device, on_maps=config.cache_features, ranks=world_size)
    if passes == "compiled":
        compile_passes(objective, device, accumulate)
    if world_size > 1:
        objective = DistributedDataParallel(
            objective,
            device_ids=[device] if device.type == "cuda" else None,
            # A level's loss reaches only its own branch.
            find_unused_parameters=sequential,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
    # Fused SGD fails where some parameters have a momentum buffer and others not yet, as after a first level's pass.
    fused = not (sequential and config.optimiser.name == "sgd")
    optimiser = build_optimiser(network, config.optimiser, fused=fused)
    scheduler = build_scheduler(optimiser, config.schedule, steps_per_epoch)
    recordings: Recordings | None = {} if passes == "graphs" else None
    return Trainer(network, objective, optimiser, scheduler, config, device, recordings=recordings)


def build_optimiser(network: nn.Module, config: OptimiserConfig, *, fused: bool = False) -> Optimizer:
    """SGD or AdamW over backbone and head; parameters of fewer than two axes (norms, biases, numbers) are not decayed."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim >= 2), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": config.backbone_lr if backbone else config.head_lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (backbone, decayed), parameters in sorted(groups.items())
    ]
    if config.name == "sgd":
        return SGD(settings, lr=config.head_lr, momentum=config.momentum, fused=fused)
    return AdamW(settings, lr=config.head_lr, betas=(config.momentum, 0.999), fused=fused)


def build_scheduler(optimiser: Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> LRScheduler:
    """Torch's schedule of the learning rate, which steps once per global batch."""
    total = config.epochs * steps_per_epoch
    match config.learning_rate:
        case "constant":
            return ConstantLR(optimiser, factor=1.0, total_iters=1)
        case "step":
            return StepLR(optimiser, config.step_epochs * steps_per_epoch, config.step_factor)
        case "cosine":
            return CosineAnnealingLR(optimiser, total)
        case "one-cycle":
            peaks = [group["lr"] for group in optimiser.param_groups]
            rising = config.warmup_fraction
            if rising * (total + 1) == 1:
                rising *= 1 + 1e-9  # Torch divides by the length of the rise less one step.
            # total + 1: the scheduler steps once more after the last batch.
            return OneCycleLR(optimiser, peaks, total_steps=total + 1, pct_start=rising, cycle_momentum=False)


def train_epoch(trainer: Trainer, batches: Iterable[Batch]) -> EpochStats:
    """One pass over this rank's shares of the epoch's global batches.

    Raises NonFiniteLossError for the first step with a non-finite loss. The check trails by one step, so that a GPU
    never waits for it; no checkpoint is taken in between.
    """
    trainer.network.train()
    config = trainer.config
    passes = levels_of(config.model) if config.schedule.order == "sequential" else (None,)
    queued: tuple[int, Tensor, np.ndarray] | None = None
    totals = torch.zeros(len(LossTerms._fields), device=trainer.device)
    images = steps = 0
    waited = 0.0
    start = asked = time.perf_counter()
    for batch in batches:
        waited += time.perf_counter() - asked
        batch = batch.to(trainer.device)
        step_terms = torch.zeros_like(totals)
        for level in passes:
            step_terms += _update(trainer, batch, level)
        totals += step_terms
        trainer.scheduler.step()
        if queued is not None:
            _check_finite(*queued)
        queued = steps, step_terms, batch.ids
        images += len(batch.ids)
        steps += 1
        asked = time.perf_counter()
    if queued is not None:
        _check_finite(*queued)
    if isinstance(trainer.objective, DistributedDataParallel):
        _agree_on_statistics(trainer.network)
    trainer.epoch += 1
    mean = LossTerms(*(totals / max(steps, 1)).tolist())._asdict()
    return EpochStats(mean, images, time.perf_counter() - start, waited, steps)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Inputs],
    class_attributes: Float[Tensor, "U S"],
    config: ExperimentConfig,
    device: torch.device,
) -> dict[Level | None, Float[np.ndarray, "N U"]]:
    """Scores of the images over all classes, float32: `scale · Σ_l cos(v_l, a_u)` under None, and each level's, of several."""
    network.eval()
    attributes = class_attributes.to(device)
    levels = levels_of(config.model)
    alone: dict[Level | None, tuple[Level, ...]] = {level: (level,) for level in levels if len(levels) > 1}
    summed = {None: levels} | alone
    rows: dict[Level | None, list[Tensor]] = {key: [torch.zeros(0, len(attributes))] for key in summed}
    for inputs in batches:
        with autocast(device, config.schedule):
            output: NetworkOutput = network(_to_device(inputs, device))
        for key, among in summed.items():
            vectors = {level: output.attributes[level] for level in among}
            rows[key].append(class_scores(vectors, attributes, config.loss.scale).float().cpu())
    return {key: torch.cat(parts).numpy() for key, parts in rows.items()}


def gather_rows(rows: Float[np.ndarray, "n U"]) -> Float[np.ndarray, "N U"] | None:
    """All ranks' rows in the order of the ranks, on rank 0; None on the others. Unchanged in a single process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    parts: list[np.ndarray | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows, parts)
    return None if parts is None else np.concatenate([part for part in parts if part is not None])


def _agree_on_statistics(network: nn.Module) -> None:
    """Sets running statistics of batch norms to their mean over ranks: all ranks evaluate the same network."""
    for norm in network.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.training:
            for statistic in (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)):
                dist.all_reduce(statistic)
                statistic.div_(dist.get_world_size())


def _check_finite(step: int, terms: Float[Tensor, " T"], ids: Int[np.ndarray, " B"]) -> None:
    if not bool(torch.isfinite(terms).all()):
        raise NonFiniteLossError(step, ids.tolist())


def _update(trainer: Trainer, batch: Batch, level: Level | None) -> Float[Tensor, " T"]:
    """Loss terms of one optimiser step on this rank's share; a graph's next replay overwrites them."""
    if trainer.recordings is None:
        terms = _gradients(trainer, batch, level)
    else:
        kind = level, len(batch.ids)
        if kind not in trainer.recordings:
            trainer.recordings[kind] = _record(trainer, batch, level)
        terms = trainer.recordings[kind](batch)
    trainer.optimiser.step()
    return terms


def _record(trainer: Trainer, batch: Batch, level: Level | None) -> Callable[[Batch], Tensor]:
    """The passes of a step as a CUDA graph: it reads a batch, leaves gradients in the parameters and returns loss terms."""
    # No reference to the trainer outlives the recording: a circle would keep the GPU's memory.
    own, parameters = deepcopy(batch), list(trainer.network.parameters())

    def work() -> tuple[Tensor, list[Tensor | None]]:
        terms = _gradients(trainer, own, level)
        return terms, [parameter.grad for parameter in parameters]

    (terms, gradients), replay = record_graph(work)

    def passes(given: Batch) -> Tensor:
        for mine, new in zip(own.tensors, given.tensors, strict=True):
            mine.copy_(new)
        replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return terms

    return passes


def _gradients(trainer: Trainer, batch: Batch, level: Level | None) -> Float[Tensor, " T"]:
    """Loss terms of a batch in `accumulate` micro-batches, whose clipped gradients are left in the parameters."""
    settings, objective = trainer.config.optimiser, trainer.objective
    trainer.optimiser.zero_grad(set_to_none=True)
    parts = list(batch.split(settings.accumulate))
    sums = torch.zeros(len(LossTerms._fields), device=trainer.device)
    for number, part in enumerate(parts, start=1):
        # Ranks exchange gradients in the last backward pass alone.
        quiet = number < len(parts) and isinstance(objective, DistributedDataParallel)
        with cast(DistributedDataParallel, objective).no_sync() if quiet else nullcontext():
            with autocast(trainer.device, trainer.config.schedule):
                terms = objective(part.inputs, part.targets, level)
            terms.total.backward()
        # A copy: a CUDA graph's next replay overwrites the output of this one.
        sums += torch.stack(terms).detach()
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), settings.clip_norm)
    return sums


def _to_device(inputs: Inputs, device: torch.device) -> Inputs:
    def moved(x: Tensor) -> Tensor:
        # Converted on the device: float16 maps are half as large on the way.
        return x.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)

    return moved(inputs) if isinstance(inputs, Tensor) else {level: moved(maps) for level, maps in inputs.items()}
