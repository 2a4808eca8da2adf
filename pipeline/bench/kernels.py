"""Where a GPU's time goes in training steps, by kind of kernel, as torch's profiler sees it.

Kernels are told apart by their names, which cuDNN, cuBLAS, CUTLASS, Triton and torch give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from pipeline.bench.machine import synchronise

PRODUCTS = "convolutions and products"
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        PRODUCTS,
        re.compile(
            r"gemm|xmma|nvjet|cutlass|wgrad|dgrad|fprop|implicit_con|convolve|splitk|triton_tem|flash|fmha", re.I
        ),
    ),
    ("fused by the compiler", re.compile(r"^triton_")),
    ("batch norm", re.compile(r"batch_?norm|bn_(fw|bw)", re.I)),
    ("optimiser and clipping", re.compile(r"multi_tensor|adam|sgd", re.I)),
    ("another layout", re.compile(r"nchwToNhwc|nhwcToNchw|transpose", re.I)),
    ("copies and other types", re.compile(r"copy|memcpy|memset|fill", re.I)),
    ("bilinear reduction", re.compile(r"upsample", re.I)),
    ("sums and softmax", re.compile(r"reduce|softmax", re.I)),
    ("element by element", re.compile(r"elementwise", re.I)),
)
OTHER = "other"


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel."""

    name: str
    seconds: float


@dataclass(frozen=True)
class KindOfKernel:
    """All kernels of a kind in one step."""

    kind: str
    seconds: float
    kernels: float


def kind_of(name: str) -> str:
    """What a kernel of that name is for."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), OTHER)


def by_kind(kernels: Iterable[Kernel], steps: int) -> list[KindOfKernel]:
    """Time and number of kernels of each kind per step, longest first.

    Args:
        kernels: of all the steps.
        steps: how many those were.
    """
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        found.setdefault(kind_of(kernel.name), []).append(kernel.seconds)
    kinds = [KindOfKernel(kind, sum(seconds) / steps, len(seconds) / steps) for kind, seconds in found.items()]
    return sorted(kinds, key=lambda kind: -kind.seconds)


def kernels_of(work: Callable[[], object], device: torch.device) -> list[Kernel]:
    """The kernels that some work runs on a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        synchronise(device)
    return [
        Kernel(event.name, event.time_range.elapsed_us() / 1e6)
        for event in seen.events() or ()
        # The optimiser's own ranges stand among the kernels that they contain.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
