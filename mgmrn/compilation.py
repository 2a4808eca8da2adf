"""When and how a network's forward and backward passes are compiled.

Steps of a network that a GPU computes in twenty milliseconds take its host a hundred to ask for, kernel by kernel. So on a GPU
the compiled passes are recorded once and replayed as CUDA graphs: one request for each.
"""

from __future__ import annotations

import torch
import torch._inductor.config as inductor
from torch import nn
from torch.utils._triton import has_triton

from mgmrn.config import Compile
from mgmrn.triton_needs import lacking_for_triton


def compile_passes(module: nn.Module, choice: Compile, device: torch.device, micro_batches: int) -> None:
    """Has a module compile its passes at its first call, for each shape of input anew.

    Args:
        module: whose `forward` is called with inputs of the same shape step after step.
        choice: yes, no, or where it is known to pay and can be done.
        device: where the module is.
        micro_batches: backward passes of a step.
    """
    if choice is False or (choice == "auto" and not pays_on(device)):
        return
    # Without being told, each of a host's ranks would start a compiler for every core.
    inductor.compile_threads = torch.get_num_threads()
    # A replay overwrites what the last one gave, so gradients of one micro-batch would not outlive the next one's.
    replayed = device.type == "cuda" and micro_batches == 1
    module.compile(mode="reduce-overhead" if replayed else None, dynamic=False)


def pays_on(device: torch.device) -> bool:
    """On GPUs, if what Triton needs is there, which `doctor` tells; a CPU gains nothing, and waits for its C++ compiler."""
    return device.type == "cuda" and has_triton() and lacking_for_triton() is None
