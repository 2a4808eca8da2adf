"""Choice of a device, its precision and kernels, and the compilation of a network's passes."""

from __future__ import annotations

import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from mgmrn.config import Compile, ScheduleConfig

TRITON_CAPABILITY = (7, 0)
"""Oldest CUDA compute capability that Triton supports."""


def usual_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, schedule: ScheduleConfig) -> AbstractContextManager[object]:
    """bfloat16 autocast where `precision` is `auto` and the GPU computes it natively; otherwise a null context."""
    wanted = schedule.precision == "auto" and device.type == "cuda"
    native = wanted and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", dtype=torch.bfloat16) if native else nullcontext()


def compile_passes(module: nn.Module, choice: Compile, device: torch.device, micro_batches: int) -> None:
    """Compiles a module's forward and backward pass at its first call, once for each input shape.

    A GPU can compute a step in 20 ms while its host needs 100 ms to launch the kernels one by one. So on a GPU the
    compiled passes are recorded as CUDA graphs and replayed, where a step has one backward pass.
    """
    if choice is False or (choice == "auto" and not compilation_pays(device)):
        return
    # By default each of a host's ranks would start a compiler process for every core.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(torch.get_num_threads()))
    # A replay overwrites the output of the last one: the gradients of a micro-batch would not survive the next one.
    replayed = device.type == "cuda" and micro_batches == 1
    module.compile(mode="reduce-overhead" if replayed else None, dynamic=False)


def compilation_pays(device: torch.device) -> bool:
    """Whether compilation makes training faster: on GPUs that Triton supports. On CPUs it gains nothing."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
        and lacking_for_triton() is None
    )


def lacking_for_triton() -> str | None:
    """First of Triton's needs that this machine lacks, or None. Triton builds a small C program around each kernel."""
    if find_spec("triton") is None:
        return "the package triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc or clang)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h)"
    return None
