"""Choice of a device, its precision and kernels, and of how a network's passes are run on it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from mgmrn.config import Compile, ScheduleConfig

T = TypeVar("T")

TRITON_CAPABILITY = (7, 0)
"""Oldest CUDA compute capability that Triton supports."""
WARM_UPS = 3
"""Runs of some work before it is recorded, in which libraries choose their kernels and make their workspaces."""

Passes = Literal["plain", "graphs", "compiled"]
"""Ways to run forward and backward passes: kernel after kernel, recorded as a CUDA graph, or by torch.compile."""
ON_MAPS: dict[Passes, tuple[float, float]] = {
    "plain": (0.0, 0.018),
    "graphs": (3.0, 0.0016),
    "compiled": (44.0, 0.0021),
}
"""Seconds until the first step, and of each step, of heads on cached maps. Measured on one H100 (torch 2.11): a plain step of
`synthetic` at batch 32, a graph at batch 64, the first epoch under torch.compile; on one H200: a compiled step of `cub100`.
The start of graphs is the most that it may take."""
ON_PICTURES: dict[Passes, tuple[float, float]] = {"plain": (0.0, 0.0769), "compiled": (60.0, 0.0246)}
"""The same of a finetuned ResNet-101 at 448², batch 16, measured on one H200 (docs/benchmarks.md)."""


def usual_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, schedule: ScheduleConfig) -> AbstractContextManager[object]:
    """bfloat16 autocast where `precision` asks for it, or is `auto` and the GPU computes it natively; otherwise a null context."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = schedule.precision == "bfloat16" or (schedule.precision == "auto" and native)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def choose_passes(choice: Compile, steps: int, device: torch.device, *, on_maps: bool, ranks: int) -> Passes:
    """How to run the passes of the steps that are left: as was chosen, or the cheapest way for `auto`.

    Graphs are for a GPU and one rank on cached maps, whose steps have no state but weights; elsewhere passes are plain.
    """
    if isinstance(choice, bool):
        return "compiled" if choice else "plain"
    offered: set[Passes] = {"plain"}
    if device.type == "cuda" and on_maps and ranks == 1:
        offered.add("graphs")
    if choice == "graphs":
        return "graphs" if "graphs" in offered else "plain"
    # On CPUs compilation gains nothing.
    supported = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    if supported and lacking_for_triton() is None:
        offered.add("compiled")
    return cheapest(ON_MAPS if on_maps else ON_PICTURES, offered, steps)


def cheapest(costs: dict[Passes, tuple[float, float]], offered: Collection[Passes], steps: int) -> Passes:
    """The offered way that takes the least time for some steps."""
    return min((way for way in costs if way in offered), key=lambda way: costs[way][0] + steps * costs[way][1])


def compile_passes(module: nn.Module, device: torch.device, micro_batches: int) -> None:
    """Compiles a module's forward and backward pass at its first call, once for each input shape.

    A GPU can compute a step in 20 ms while its host needs 100 ms to launch the kernels one by one. So on a GPU the
    compiled passes are recorded as CUDA graphs and replayed, where a step has one backward pass.
    """
    # By default each of a host's ranks would start a compiler process for every core.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(torch.get_num_threads()))
    # A replay overwrites the output of the last one: the gradients of a micro-batch would not survive the next one.
    replayed = device.type == "cuda" and micro_batches == 1
    module.compile(mode="reduce-overhead" if replayed else None, dynamic=False)


def record_graph(work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """Records the kernels of some work as a CUDA graph; returns its result, and a function that computes it in place.

    The work is run `WARM_UPS` times before. It must read tensors that stay where they are, and not wait for the GPU.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads load the next batch meanwhile, and may ask for pinned memory.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return result, graph.replay


def lacking_for_triton() -> str | None:
    """First of Triton's needs that this machine lacks, or None. Triton builds a small C program around each kernel."""
    if find_spec("triton") is None:
        return "the package triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc or clang)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h)"
    return None
