"""Choice of a device, its precision and kernels, and of how a network's passes are run on it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

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


class PassCost(NamedTuple):
    """Seconds until training begins, and seconds of each step."""

    start: float
    step: float


ON_MAPS: dict[Passes, PassCost] = {
    "plain": PassCost(0.0, 0.018),
    "graphs": PassCost(3.0, 0.0016),
    "compiled": PassCost(44.0, 0.0021),
}
"""Costs of heads on cached maps. Measured on one H100 (torch 2.11): a plain step of `synthetic` at batch 32, a graph at batch
64, the first epoch under torch.compile. On one H200: a compiled step of `cub100`. The start of graphs is their limit."""
ON_PICTURES: dict[Passes, PassCost] = {"plain": PassCost(0.0, 0.0769), "compiled": PassCost(60.0, 0.0246)}
"""Costs of a finetuned ResNet-101 at 448², batch 16, measured on one H200 (docs/benchmarks.md)."""


def usual_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, schedule: ScheduleConfig) -> AbstractContextManager[object]:
    """bfloat16 autocast where `precision` is `auto` and the GPU computes it natively; otherwise a null context."""
    wanted = schedule.precision == "auto" and device.type == "cuda"
    native = wanted and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", dtype=torch.bfloat16) if native else nullcontext()


def choose_passes(choice: Compile, steps: int, costs: dict[Passes, PassCost], offered: Collection[Passes]) -> Passes:
    """How to run the passes of the steps that are left; `offered` are the ways that the device and the run allow.

    `auto` takes the offered way that costs least; `graphs` needs a GPU, and is plain elsewhere.
    """
    if choice == "auto":
        return min((way for way in costs if way in offered), key=lambda way: costs[way].start + steps * costs[way].step)
    if choice == "graphs":
        return "graphs" if "graphs" in offered else "plain"
    return "compiled" if choice else "plain"


def offered_passes(device: torch.device, *, on_maps: bool, ranks: int) -> set[Passes]:
    """Ways to run passes among which `auto` chooses. Graphs are for one rank on cached maps: its step has no state but weights."""
    offered: set[Passes] = {"plain"}
    if device.type == "cuda" and on_maps and ranks == 1:
        offered.add("graphs")
    if compilation_pays(device):
        offered.add("compiled")
    return offered


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
