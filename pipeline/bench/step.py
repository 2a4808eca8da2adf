"""`bench step`: training steps at the paper's size, ours against the released mathematics done plainly.

All variants live in one process and are timed in turn, round by round; a ratio is the median over rounds of the ratio within a round, so that
a machine that is busy for a while slows both sides. The machine's own peak, in a large product and a large convolution, is measured in the
same rounds. Peak memory is measured in a fresh process per variant. Two networks are looked into part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from mgmrn.engine import autocast
from mgmrn.memory import keep_freed_memory
from pipeline.bench.machine import CPU_PROBES, GPU_PROBES, PeakProbe, ProbeSize, make_probes, synchronise
from pipeline.bench.parts import bound_of, measure_parts, parts_of
from pipeline.bench.peak_memory import measure_peak
from pipeline.bench.report import BenchReport, BenchTable, Timing, environment, in_turn, rounds_ratio, spread
from pipeline.bench.step_variants import REFERENCE, StepSize, make_step, make_training
from pipeline.console import say

REPEATS = 5
PASSES = 3
LOOKED_INTO = ("joint", "default")
PART_COLUMNS = ("part", "time", "GFLOP", "MB moved", "bound by", "bound / time")


def run(variants: Sequence[str], size: StepSize, device: torch.device, repeats: int = REPEATS) -> BenchReport:
    """Times steps of the variants.

    Args:
        variants: of `step_variants`; ratios are to the reference where that is one of them.
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
    steps = {name: _synchronised(make_step(name, size, device), device) for name in variants}
    probes = {probe.name: probe for probe in make_probes(device, probe_size)}
    # The first step is the one that is counted and not timed: it pays for compilation and first allocations.
    operations = {name: _operations(step) for name, step in steps.items()}
    for probe in probes.values():
        probe.work()
    works = steps | {name: _synchronised(probe.work, device) for name, probe in probes.items()}
    seconds = in_turn(works, repeats, say)
    rates = {name: _rate(probe, seconds[name]) for name, probe in probes.items()}
    peak = max(rates[name].median for name, probe in probes.items() if probe.unit == "FLOP/s")
    results: list[Timing] = []
    for name in variants:
        achieved = [operations[name] / s / 1e9 for s in seconds[name]]
        results += [
            spread(f"{name}: step", seconds[name], "s"),
            spread(f"{name}: images", [size.batch / s for s in seconds[name]], "1/s"),
            spread(f"{name}: achieved", achieved, "GFLOP/s"),
            spread(f"{name}: share of peak", [100 * rate / peak for rate in achieved], "%"),
        ]
    results += rates.values()
    others = [name for name in variants if name != REFERENCE]
    against = (
        [rounds_ratio(f"{name} / {REFERENCE}, images/s", seconds[REFERENCE], seconds[name]) for name in others]
        if REFERENCE in variants
        else []
    )
    memory = {name: measure_peak(name, size) for name in variants}
    results += [spread(f"{name}: peak memory", [found.peak], "MiB") for name, found in memory.items()]
    results += [spread("the packages alone", [found.before for found in memory.values()], "MiB")]
    ratios = {one.name: one.median for one in against}
    if REFERENCE in variants:
        ratios |= {
            f"{name} / {REFERENCE}, peak memory": memory[name].peak / memory[REFERENCE].peak for name in variants
        }
    steps.clear()
    tables = tuple(_parts_table(name, size, device, rates) for name in variants if name in LOOKED_INTO)
    notes = (
        f"{size.backbone} at {size.images}², batch {size.batch}, D = {size.width} (as released), on {_device_name(device)}.",
        *(f"{name}: {count / 1e12:.4g} TFLOP a step." for name, count in operations.items()),
    )
    machine = environment(("torch", "torchvision"))
    return BenchReport("step", machine, (*against, *results), ratios, notes, tables)


def _parts_table(variant: str, size: StepSize, device: torch.device, rates: Mapping[str, Timing]) -> BenchTable:
    """Parts of a variant's forward pass, each beside its roofline."""
    trainer, batch = make_training(variant, size, device)
    network = trainer.network.train()

    def forward() -> None:
        with autocast(device, trainer.config.schedule):
            network(batch.inputs)

    costs = measure_parts(parts_of(network), forward, device, PASSES)
    peak = 1e9 * max(rate.median for rate in rates.values() if rate.unit == "GFLOP/s")
    bandwidth = 1e9 * next(rate.median for rate in rates.values() if rate.unit == "GB/s")
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


def _synchronised(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def done() -> None:
        work()
        synchronise(device)

    return done


def _operations(step: Callable[[], object]) -> int:
    """Floating-point operations of one step, as torch counts them: products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _rate(probe: PeakProbe, seconds: Sequence[float]) -> Timing:
    return spread(f"the machine: {probe.name}", [probe.amount / s / 1e9 for s in seconds], f"G{probe.unit}")


def _device_name(device: torch.device) -> str:
    threads = f"{torch.get_num_threads()} CPU threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else threads
