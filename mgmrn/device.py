"""Where a process computes that nobody told, and how its GPU chooses kernels."""

from __future__ import annotations

import torch


def usual_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prefer_fastest_kernels() -> None:
    """Has cuDNN try its convolutions at the first call for each shape, and keep the fastest. Training has few shapes."""
    torch.backends.cudnn.benchmark = True
