"""The largest memory of a variant's training steps.

On a GPU torch's allocator says it. On a CPU the kernel does, of a whole process, so that it is measured in one that does nothing else:
`python -m pipeline.bench.peak_memory VARIANT SIZE-AS-JSON` prints its high-water mark of resident memory, and what that was when only the
packages had been loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mgmrn.memory import keep_freed_memory
from pipeline.bench.fresh_process import printed_by
from pipeline.bench.step_variants import StepSize, make_step

STEPS = 2
"""The second step has the optimiser's state besides."""


@dataclass(frozen=True)
class PeakMemory:
    """In MiB."""

    before: float
    """Once the packages are loaded; of a GPU, what others hold."""
    peak: float


def peak_on_gpu(work: Callable[[], object], device: torch.device) -> PeakMemory:
    """Of some work, above what was allocated before it.

    Args:
        work: what allocates.
        device: a GPU.
    """
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return PeakMemory(before / 2**20, (torch.cuda.max_memory_allocated(device) - before) / 2**20)


def measure_peak(variant: str, size: StepSize) -> PeakMemory:
    """Makes two steps on the CPU in a fresh process.

    Raises:
        UserError: when the process failed.
    """
    told = printed_by("-m", "pipeline.bench.peak_memory", variant, json.dumps(asdict(size)))
    return PeakMemory(**json.loads(told.splitlines()[-1]))


def main(variant: str, size_json: str) -> None:
    """What the fresh process does."""
    keep_freed_memory()
    before = _high_water()
    make_step(variant, StepSize(**json.loads(size_json)), torch.device("cpu"))(STEPS)
    sys.stdout.write(json.dumps(asdict(PeakMemory(before, _high_water()))) + "\n")


def _high_water() -> float:
    # Not getrusage: its maximum is inherited from the parent, whose memory it is not.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
