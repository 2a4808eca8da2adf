"""What the machine can do at most: floating-point operations in large products and convolutions, and bytes copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PeakProbe:
    """Work of a known size that the machine is good at."""

    name: str
    work: Callable[[], object]
    amount: float
    """Floating-point operations, or bytes."""
    unit: str
    """Of the rate, `FLOP/s` or `B/s`."""


@dataclass(frozen=True)
class ProbeSize:
    """How large the probes are."""

    matrix: int
    """Side of the square matrices."""
    channels: int
    side: int
    """Of the convolution's map."""
    copied: int
    """Bytes."""


CPU_PROBES = ProbeSize(matrix=2048, channels=512, side=28, copied=2**28)
GPU_PROBES = ProbeSize(matrix=8192, channels=2048, side=56, copied=2**31)


def make_probes(device: torch.device, size: ProbeSize) -> list[PeakProbe]:
    """A square product, a 3×3 convolution, and a copy; on a GPU the first two in bfloat16 too."""
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    probes = [probe for dtype in dtypes for probe in _arithmetic(device, size, dtype)]
    source = torch.ones(size.copied // 4, device=device)
    target = torch.empty_like(source)
    # A copy reads and writes.
    return [*probes, PeakProbe("copy", lambda: target.copy_(source), 2.0 * size.copied, "B/s")]


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arithmetic(device: torch.device, size: ProbeSize, dtype: torch.dtype) -> list[PeakProbe]:
    label = str(dtype).removeprefix("torch.")
    n, c, side = size.matrix, size.channels, size.side
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    image = torch.randn(8, c, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(c, c, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    return [
        PeakProbe(f"matmul {label}", lambda: a @ b, 2.0 * n**3, "FLOP/s"),
        PeakProbe(
            f"conv {label}", lambda: F.conv2d(image, weight, padding=1), 2.0 * 8 * 9 * c * c * side * side, "FLOP/s"
        ),
    ]
