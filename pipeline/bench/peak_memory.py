"""The largest memory of a variant's training steps, measured in a process that does nothing else.

`python -m pipeline.bench.peak_memory VARIANT SIZE-AS-JSON` prints one JSON object. On a GPU torch's allocator says it; on a CPU the kernel,
of the whole process: its high-water mark of resident memory, and what it was when only the packages had been loaded.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mgmrn.device import usual_device
from mgmrn.memory import keep_freed_memory
from pipeline.bench.fresh_process import printed_by
from pipeline.bench.step_variants import StepSize, make_step

STEPS = 2
"""The second step has the optimiser's state besides."""


@dataclass(frozen=True)
class PeakMemory:
    """Of one process, in MiB."""

    before: float
    """Once the packages are loaded."""
    peak: float


def measure_peak(variant: str, size: StepSize) -> PeakMemory:
    """Makes two steps in a fresh process.

    Raises:
        UserError: when the process failed.
    """
    told = printed_by("-m", "pipeline.bench.peak_memory", variant, json.dumps(asdict(size)))
    return PeakMemory(**json.loads(told.splitlines()[-1]))


def main(variant: str, size_json: str) -> None:
    """What the fresh process does."""
    keep_freed_memory()
    device = usual_device()
    before = _high_water(device)
    step = make_step(variant, StepSize(**json.loads(size_json)), device)
    for _ in range(STEPS):
        step()
    sys.stdout.write(json.dumps(asdict(PeakMemory(before, _high_water(device)))) + "\n")


def _high_water(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Not getrusage: its maximum is inherited from the parent, whose memory it is not.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
