"""Tables of `bench step`: the forward pass by part beside the roofline, and a GPU's step by kind of kernel."""

from __future__ import annotations

from functools import partial

import torch

from mgmrn.engine import autocast
from pipeline.bench.kernels import PRODUCTS, KindOfKernel, by_kind, kernels_of
from pipeline.bench.made_step import MadeStep
from pipeline.bench.parts import bound_of, measure_parts, parts_of
from pipeline.bench.report import BenchTable
from pipeline.bench.step_variants import StepSize, make_training

PASSES = 3
STEPS = 4
PART_COLUMNS = ("part", "time", "GFLOP", "MB moved", "bound by", "bound / time")
KERNEL_COLUMNS = ("kernels", "time", "share", "number")


def kernels_table(name: str, made: MadeStep, device: torch.device, peak: float) -> BenchTable:
    """Kernels of a variant's steps by kind; in the title, what its convolutions and products achieve while they run.

    Args:
        name: of the variant.
        made: the variant.
        device: a GPU.
        peak: its floating-point operations per second.
    """
    kinds = by_kind(kernels_of(partial(made.step, STEPS), device), STEPS)
    busy = sum(kind.seconds for kind in kinds)
    products = sum(kind.seconds for kind in kinds if kind.kind == PRODUCTS)
    rate = made.operations / products
    title = (
        f"A step of `{name}` by kind of kernel: {1000 * busy:.3g} ms in all; "
        f"{PRODUCTS} at {rate / 1e12:.3g} TFLOP/s, {100 * rate / peak:.0f} % of the peak"
    )
    return BenchTable(title, KERNEL_COLUMNS, tuple(_kernels_row(kind, busy) for kind in kinds))


def _kernels_row(kind: KindOfKernel, busy: float) -> tuple[str, ...]:
    return kind.kind, f"{1000 * kind.seconds:.3g} ms", f"{100 * kind.seconds / busy:.0f} %", f"{kind.kernels:.0f}"


def parts_table(variant: str, size: StepSize, device: torch.device, peak: float, bandwidth: float) -> BenchTable:
    """Parts of a variant's forward pass, each beside its roofline.

    Args:
        variant: one of ours.
        size: of the step.
        device: where.
        peak: the device's floating-point operations per second.
        bandwidth: bytes per second that it moves.
    """
    trainer, batch = make_training(variant, size, device)
    network = trainer.network.train()

    def forward() -> None:
        with autocast(device, trainer.config.schedule):
            network(batch.inputs)

    costs = measure_parts(parts_of(network), forward, device, PASSES)
    rows = []
    for name, cost in costs.items():
        bound = bound_of(cost, peak, bandwidth)
        rows.append(
            (
                name,
                f"{1000 * cost.seconds:.3g} ms",
                f"{cost.operations / 1e9:.4g}",
                f"{cost.bytes / 1e6:.4g}",
                bound.limit,
                f"{100 * bound.seconds / cost.seconds:.0f} %",
            )
        )
    return BenchTable(f"Forward pass of `{variant}` by part", PART_COLUMNS, tuple(rows))
