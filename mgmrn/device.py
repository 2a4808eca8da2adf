"""Where a process computes that nobody told."""

from __future__ import annotations

import torch


def usual_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
