"""`bench step`: training steps at the paper's size, ours against the released mathematics done plainly.

All variants live in one process and are timed in turn, round by round; a ratio is the median over rounds of the ratio within a round, so that
a machine that is busy for a while slows both sides. The machine's own peak, in a large product and a large convolution, is measured in the
same rounds. Two networks are looked into part by part, and on a GPU all of them kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from mgmrn.device import prefer_fastest_kernels
from mgmrn.engine import autocast
from mgmrn.memory import keep_freed_memory
from pipeline.bench.kernels import PRODUCTS, KindOfKernel, by_kind, kernels_of
from pipeline.bench.machine import CPU_PROBES, GPU_PROBES, PeakProbe, ProbeSize, make_probes, synchronise
from pipeline.bench.parts import bound_of, measure_parts, parts_of
from pipeline.bench.peak_memory import PeakMemory, measure_peak, peak_on_gpu
from pipeline.bench.report import BenchReport, BenchTable, Timing, environment, in_turn, rounds_ratio, spread
from pipeline.bench.step_variants import COMPILED, REFERENCE, STRICT_REFERENCE, Step, StepSize, make_step, make_training
from pipeline.console import say

REPEATS = 5
PASSES = 3
LOOKED_INTO = ("joint", "default")
PART_COLUMNS = ("part", "time", "GFLOP", "MB moved", "bound by", "bound / time")
KERNEL_COLUMNS = ("kernels", "time", "share", "number")
TIMED_ON_GPU = 4
"""Steps that are timed together, since the host runs ahead of a GPU until somebody asks for a figure, as it does within an epoch."""
WARM_UPS = 3
"""On a GPU: compiling, running once to learn what memory is needed, recording."""


@dataclass(frozen=True)
class MadeStep:
    """A variant that is ready to be timed."""

    step: Step
    operations: int
    """Floating-point operations of one step, as torch counts them: products and convolutions, forward and backward."""
    memory: PeakMemory


def run(variants: Sequence[str], size: StepSize, device: torch.device, repeats: int = REPEATS) -> BenchReport:
    """Times steps of the variants.

    Args:
        variants: of `step_variants`; ratios are to the references that are among them.
        size: images, batch, width and backbone.
        device: where.
        repeats: rounds.

    Raises:
        UserError: for an unknown variant, or a reference that is not at hand.
    """
    probes = GPU_PROBES if device.type == "cuda" else CPU_PROBES
    return measure_steps(variants, size, device, repeats, probes)


def measure_steps(
    variants: Sequence[str], size: StepSize, device: torch.device, repeats: int, probe_size: ProbeSize
) -> BenchReport:
    """The same with probes of a given size."""
    keep_freed_memory()
    prefer_fastest_kernels()
    on_gpu = device.type == "cuda"
    make = _made_on_gpu if on_gpu else _made_on_cpu
    made = {name: make(name, size, device) for name in variants}
    probes = {probe.name: probe for probe in make_probes(device, probe_size)}
    for probe in probes.values():
        probe.work()
    count = TIMED_ON_GPU if on_gpu else 1
    works = {name: _synchronised(partial(one.step, count), device) for name, one in made.items()}
    works |= {name: _synchronised(probe.work, device) for name, probe in probes.items()}
    seconds = in_turn(works, repeats, say)
    for name in variants:
        seconds[name] = [s / count for s in seconds[name]]
    rates = {name: _rate(probe, seconds[name]) for name, probe in probes.items()}
    peak = _peak(rates)
    results: list[Timing] = []
    for name, one in made.items():
        achieved = [one.operations / s / 1e9 for s in seconds[name]]
        results += [
            spread(f"{name}: step", seconds[name], "s"),
            spread(f"{name}: images", [size.batch / s for s in seconds[name]], "1/s"),
            spread(f"{name}: achieved", achieved, "GFLOP/s"),
            spread(f"{name}: share of peak", [100 * rate / peak for rate in achieved], "%"),
        ]
    results += rates.values()
    results += [spread(f"{name}: peak memory", [one.memory.peak], "MiB") for name, one in made.items()]
    if not on_gpu:
        results += [spread("the packages alone", [one.memory.before for one in made.values()], "MiB")]
    against = []
    ratios: dict[str, float] = {}
    for reference in (STRICT_REFERENCE, REFERENCE):
        for name in made if reference in made else ():
            ratios[f"{name} / {reference}, peak memory"] = made[name].memory.peak / made[reference].memory.peak
            if name not in (REFERENCE, STRICT_REFERENCE):
                against.append(rounds_ratio(f"{name} / {reference}, images/s", seconds[reference], seconds[name]))
    tables = [_kernels_table(name, one, device, 1e9 * peak) for name, one in made.items()] if on_gpu else []
    notes = (
        f"{size.backbone} at {size.images}², batch {size.batch}, D = {size.width} (as released), on {_device_name(device)}.",
        *(f"{name}: {one.operations / 1e12:.4g} TFLOP a step." for name, one in made.items()),
    )
    made.clear()
    tables += [_parts_table(name, size, device, rates) for name in variants if name in LOOKED_INTO]
    machine = environment(("torch", "torchvision"))
    found = {timing.name: timing.median for timing in against} | ratios
    return BenchReport("step", machine, (*against, *results), found, notes, tuple(tables))


def _made_on_cpu(name: str, size: StepSize, device: torch.device) -> MadeStep:
    step = make_step(name, size, device)
    # The step that is counted is not timed: it pays for compilation and first allocations.
    return MadeStep(step, _operations(step), measure_peak(name, size))


def _made_on_gpu(name: str, size: StepSize, device: torch.device) -> MadeStep:
    # A compiled step is counted before it is compiled.
    operations = _operations(make_step(name.removesuffix(COMPILED), size, device))
    made: list[Step] = []

    def make() -> None:
        made.append(make_step(name, size, device))
        made[0](WARM_UPS)

    memory = peak_on_gpu(make, device)
    say(f"{name} is ready")
    return MadeStep(made[0], operations, memory)


def _kernels_table(name: str, made: MadeStep, device: torch.device, peak: float) -> BenchTable:
    """Kernels of a variant's steps by kind; in the title, what its convolutions and products achieve while they run."""
    kinds = by_kind(kernels_of(partial(made.step, TIMED_ON_GPU), device), TIMED_ON_GPU)
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


def _parts_table(variant: str, size: StepSize, device: torch.device, rates: Mapping[str, Timing]) -> BenchTable:
    """Parts of a variant's forward pass, each beside its roofline."""
    trainer, batch = make_training(variant, size, device)
    network = trainer.network.train()

    def forward() -> None:
        with autocast(device, trainer.config.schedule):
            network(batch.inputs)

    costs = measure_parts(parts_of(network), forward, device, PASSES)
    bandwidth = 1e9 * next(rate.median for rate in rates.values() if rate.unit == "GB/s")
    rows = []
    for name, cost in costs.items():
        bound = bound_of(cost, 1e9 * _peak(rates), bandwidth)
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


def _synchronised(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def done() -> None:
        work()
        synchronise(device)

    return done


def _operations(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step(1)
    return counter.get_total_flops()


def _rate(probe: PeakProbe, seconds: Sequence[float]) -> Timing:
    return spread(f"the machine: {probe.name}", [probe.amount / s / 1e9 for s in seconds], f"G{probe.unit}")


def _peak(rates: Mapping[str, Timing]) -> float:
    """The best of the arithmetic probes, in GFLOP/s."""
    return max(rate.median for rate in rates.values() if rate.unit == "GFLOP/s")


def _device_name(device: torch.device) -> str:
    threads = f"{torch.get_num_threads()} CPU threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else threads
