"""A variant of `bench step` that is ready to be timed: what it computes is counted, what it compiles is compiled, what it needs is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.peak_memory import PeakMemory, measure_peak, peak_on_gpu
from pipeline.bench.step_variants import COMPILED, Step, StepSize, make_step
from pipeline.console import say

WARM_UPS = 3
"""On a GPU: compiling, running once to learn what memory is needed, recording."""


@dataclass(frozen=True)
class MadeStep:
    """A variant that is ready to be timed."""

    step: Step
    operations: int
    """Floating-point operations of one step, as torch counts them: products and convolutions, forward and backward."""
    memory: PeakMemory


def made_on_cpu(name: str, size: StepSize, device: torch.device) -> MadeStep:
    """On the CPU; its memory is measured in a process of its own.

    Raises:
        UserError: for an unknown variant, or a reference that is not at hand.
    """
    step = make_step(name, size, device)
    # The step that is counted is not timed: it pays for compilation and first allocations.
    return MadeStep(step, _operations(step), measure_peak(name, size))


def made_on_gpu(name: str, size: StepSize, device: torch.device) -> MadeStep:
    """On a GPU.

    Raises:
        UserError: for an unknown variant, or a reference that is not at hand.
    """
    # A compiled step is counted before it is compiled.
    operations = _operations(make_step(name.removesuffix(COMPILED), size, device))
    made: list[Step] = []

    def make() -> None:
        made.append(make_step(name, size, device))
        made[0](WARM_UPS)

    memory = peak_on_gpu(make, device)
    say(f"{name} is ready")
    return MadeStep(made[0], operations, memory)


def _operations(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step(1)
    return counter.get_total_flops()
