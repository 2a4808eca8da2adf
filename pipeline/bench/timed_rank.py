"""What each rank of `pipeline.bench.under_ray` does, once the network's packages are loaded."""

from __future__ import annotations

import statistics
import time

import ray.train
import ray.train.torch
import torch
import torch.distributed

import pipeline.train.worker  # noqa: F401  # A real rank loads all of this.
from mgmrn.atomic_file import replacing
from mgmrn.feed import Share
from pipeline.bench.machine import synchronise
from pipeline.bench.report import seconds_of
from pipeline.bench.spec import StretchSpec
from pipeline.bench.stretch import Stretch, open_stretch
from pipeline.bench.under_ray import WARM_UP, StretchTimes

EXCHANGES = 5


def run_timed(spec: StretchSpec, entered: float) -> None:
    """Trains the stretch; rank 0 writes the answer.

    Args:
        spec: what is trained.
        entered: when the rank began, in seconds since the epoch.
    """
    imported = time.time()
    torch.set_num_threads(spec.threads)
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    torch.manual_seed(spec.config.seed)
    stretch = open_stretch(
        spec.config,
        spec.data_root,
        spec.cache_root,
        steps=1 + WARM_UP + spec.batches,
        share=share,
        device=ray.train.torch.get_device(),
    )
    ready = time.time()
    stretch.train(1)
    synchronise(stretch.device)
    first_step = time.time()
    stretch.train(WARM_UP)
    _wait_for_all(share)
    seconds = seconds_of(lambda: _train(stretch, spec.batches, share))
    gradient = sum(p.numel() * p.element_size() for p in stretch.trainer.network.parameters() if p.requires_grad)
    exchange = _exchange_seconds(gradient, stretch.device) if share.world_size > 1 else 0.0
    if share.rank == 0:
        times = StretchTimes(
            entered=entered,
            imported=imported,
            ready=ready,
            first_step=first_step,
            seconds=seconds,
            images=spec.batches * stretch.feed.global_batch,
            gradient_bytes=gradient,
            exchange_seconds=exchange,
        )
        with replacing(spec.answer) as file:
            file.write(times.model_dump_json().encode())
    ray.train.report({})


def _train(stretch: Stretch, batches: int, share: Share) -> None:
    stretch.train(batches)
    synchronise(stretch.device)
    _wait_for_all(share)


def _wait_for_all(share: Share) -> None:
    if share.world_size > 1:
        torch.distributed.barrier()


def _exchange_seconds(size: int, device: torch.device) -> float:
    """Median seconds in which a buffer of `size` bytes is summed over the ranks."""
    buffer = torch.zeros(size // 4, device=device)

    def exchange() -> None:
        torch.distributed.all_reduce(buffer)
        synchronise(device)

    exchange()
    return statistics.median(seconds_of(exchange) for _ in range(EXCHANGES))
