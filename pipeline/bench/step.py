"""`bench step`: training steps at the paper's size, ours against the released mathematics done plainly.

All variants live in one process and are timed in turn, round by round; a ratio is the median over rounds of the ratio within a round, so that
a machine that is busy for a while slows both sides. The machine's own peak, in a large product and a large convolution, is measured in the
same rounds. Two networks are looked into part by part, and on a GPU all of them kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from mgmrn.device import prefer_fastest_kernels
from mgmrn.memory import keep_freed_memory
from pipeline.bench.machine import CPU_PROBES, GPU_PROBES, PeakProbe, ProbeSize, make_probes, synchronise
from pipeline.bench.made_step import MadeStep, made_on_cpu, made_on_gpu
from pipeline.bench.report import BenchReport, Timing, environment, in_turn, rounds_ratio, spread
from pipeline.bench.step_tables import kernels_table, parts_table
from pipeline.bench.step_variants import REFERENCE, STRICT_REFERENCE, StepSize
from pipeline.console import say

REPEATS = 5
LOOKED_INTO = ("joint", "default")
REFERENCES = (STRICT_REFERENCE, REFERENCE)
TIMED_ON_GPU = 4
"""Steps that are timed together, since the host runs ahead of a GPU until somebody asks for a figure, as it does within an epoch."""


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
    make = made_on_gpu if on_gpu else made_on_cpu
    made = {name: make(name, size, device) for name in variants}
    probes = {probe.name: probe for probe in make_probes(device, probe_size)}
    for probe in probes.values():
        probe.work()
    count = TIMED_ON_GPU if on_gpu else 1
    works = {name: _synchronised(partial(one.step, count), device) for name, one in made.items()}
    works |= {name: _synchronised(probe.work, device) for name, probe in probes.items()}
    seconds = in_turn(works, repeats, say)
    steps = {name: [s / count for s in seconds[name]] for name in variants}
    rates = [_rate(probe, seconds[name]) for name, probe in probes.items()]
    peak = 1e9 * max(rate.median for rate in rates if rate.unit == "GFLOP/s")
    bandwidth = 1e9 * next(rate.median for rate in rates if rate.unit == "GB/s")
    against = _against_references(steps)
    results = [timing for name, one in made.items() for timing in _timings(name, one, steps[name], size.batch, peak)]
    results += [*rates, *(spread(f"{name}: peak memory", [one.memory.peak], "MiB") for name, one in made.items())]
    if not on_gpu:
        results += [spread("the packages alone", [one.memory.before for one in made.values()], "MiB")]
    ratios = {timing.name: timing.median for timing in against} | _memory_ratios(made)
    notes = (
        f"{size.backbone} at {size.images}², batch {size.batch}, D = {size.width} (as released), on {_device_name(device)}.",
        *(f"{name}: {one.operations / 1e12:.4g} TFLOP a step." for name, one in made.items()),
    )
    tables = [kernels_table(name, one, device, peak) for name, one in made.items()] if on_gpu else []
    made.clear()
    works.clear()
    tables += [parts_table(name, size, device, peak, bandwidth) for name in variants if name in LOOKED_INTO]
    machine = environment(("torch", "torchvision"))
    return BenchReport("step", machine, (*against, *results), ratios, notes, tuple(tables))


def _against_references(steps: Mapping[str, Sequence[float]]) -> list[Timing]:
    """Images per second of ours over those of each reference that was measured."""
    return [
        rounds_ratio(f"{name} / {reference}, images/s", steps[reference], seconds)
        for reference in REFERENCES
        if reference in steps
        for name, seconds in steps.items()
        if name not in REFERENCES
    ]


def _memory_ratios(made: Mapping[str, MadeStep]) -> dict[str, float]:
    return {
        f"{name} / {reference}, peak memory": one.memory.peak / made[reference].memory.peak
        for reference in REFERENCES
        if reference in made
        for name, one in made.items()
    }


def _timings(name: str, made: MadeStep, seconds: Sequence[float], batch: int, peak: float) -> list[Timing]:
    rates = [made.operations / s for s in seconds]
    return [
        spread(f"{name}: step", seconds, "s"),
        spread(f"{name}: images", [batch / s for s in seconds], "1/s"),
        spread(f"{name}: achieved", [rate / 1e9 for rate in rates], "GFLOP/s"),
        spread(f"{name}: share of peak", [100 * rate / peak for rate in rates], "%"),
    ]


def _synchronised(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def done() -> None:
        work()
        synchronise(device)

    return done


def _rate(probe: PeakProbe, seconds: Sequence[float]) -> Timing:
    return spread(f"the machine: {probe.name}", [probe.amount / s / 1e9 for s in seconds], f"G{probe.unit}")


def _device_name(device: torch.device) -> str:
    threads = f"{torch.get_num_threads()} CPU threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else threads
