"""What limits each part of a network's forward pass: its time beside what its arithmetic and memory traffic need at the machine's best.

A roofline (Williams, Waterman and Patterson 2009): a part cannot be faster than its floating-point operations at the measured peak, nor than
its bytes at the measured bandwidth. Bytes are those that every operation reads and writes when nothing stays in a cache and nothing is
fused, so a part may beat that bound.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.machine import synchronise

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class PartCost:
    """One forward pass through a part."""

    seconds: float
    operations: int
    bytes: int


@dataclass(frozen=True)
class Bound:
    """The least time that a part could take on a machine."""

    seconds: float
    limit: str
    """`arithmetic` or `memory`."""


def bound_of(cost: PartCost, peak: float, bandwidth: float) -> Bound:
    """The roofline over a part.

    Args:
        cost: its operations and bytes.
        peak: operations per second.
        bandwidth: bytes per second.
    """
    arithmetic, memory = cost.operations / peak, cost.bytes / bandwidth
    return Bound(arithmetic, "arithmetic") if arithmetic >= memory else Bound(memory, "memory")


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """Backbone, each level, fusion and each decoder of an `ImageModel` around an Mg-MRN, by their names in it."""
    head = network.get_submodule("head")
    levels = list(dict(head.get_submodule("levels").named_children()))
    names = {
        "backbone": "backbone",
        **{f"regions and MgM {level}": f"head.levels.{level}" for level in levels},
        "MRM": "head.refinement",
        **{f"VSD {level}": f"head.decoders.{level}" for level in levels},
    }
    return {name: network.get_submodule(path) for name, path in names.items()}


def measure_parts(
    parts: Mapping[str, nn.Module], forward: Callable[[], object], device: torch.device, repeats: int
) -> dict[str, PartCost]:
    """What every part takes in a forward pass; the time is the least of the repeats.

    Args:
        parts: modules that do not lie within each other.
        forward: a pass through all of them.
        device: where they are.
        repeats: timed passes, after one that does not count.
    """

    def clock() -> float:
        synchronise(device)
        return time.perf_counter()

    forward()
    rounds = [_spent(parts, forward, clock) for _ in range(repeats)]
    with FlopCounterMode(display=False) as counter:
        operations = _spent(parts, forward, counter.get_total_flops)
    with _Traffic() as traffic:
        moved = _spent(parts, forward, lambda: traffic.total)
    return {name: PartCost(min(one[name] for one in rounds), operations[name], moved[name]) for name in parts}


@contextmanager
def _around(
    parts: Mapping[str, nn.Module], enter: Callable[[str], None], leave: Callable[[str], None]
) -> Iterator[None]:
    """Calls back before and after each call of a part."""
    with ExitStack() as stack:
        for name, module in parts.items():
            before = module.register_forward_pre_hook(lambda *given, name=name: enter(name))
            after = module.register_forward_hook(lambda *given, name=name: leave(name))
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _spent(parts: Mapping[str, nn.Module], forward: Callable[[], object], read: Callable[[], T]) -> dict[str, T]:
    """What a meter advances by within each part during one forward pass."""
    spent: dict[str, Any] = defaultdict(int)

    def enter(name: str) -> None:
        spent[name] -= read()

    def leave(name: str) -> None:
        spent[name] += read()

    with _around(parts, enter, leave):
        forward()
    return spent


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that operations take and give; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if not func.is_view:
            tensors = (leaf for leaf in tree_leaves((args, given, result)) if isinstance(leaf, Tensor))
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result
