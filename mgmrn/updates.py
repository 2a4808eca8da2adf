"""When parameters are updated: after a backward pass, or in the course of it.

A parameter's update needs its own gradient alone, unless gradients are clipped together, summed over micro-batches or averaged
over ranks. So one that is complete can be used and freed while the pass goes on: the updates are the same, bit by bit, and a
network's gradients never stand in memory all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

GRADIENT_BYTES = 2**26
"""Gradients that may wait. Large enough that the heads of cached features are updated once a pass."""

T = TypeVar("T")


@runtime_checkable
class Update(Protocol):
    """One optimiser step."""

    def __call__(self, backward: Callable[[], T]) -> T:
        """Runs a function that calls `backward`, updates the parameters, and hands on what the function returned."""


class UpdateAfter:
    """Updates all parameters once the gradients are there.

    Args:
        optimiser: of the parameters.
        parameters: of the network.
        clip_norm: largest norm of all gradients together; none: no clipping.
    """

    def __init__(self, optimiser: Optimizer, parameters: list[Tensor], clip_norm: float | None) -> None:
        self._optimiser, self._parameters, self._clip_norm = optimiser, parameters, clip_norm

    def __call__(self, backward: Callable[[], T]) -> T:
        """See `Update`; the gradients stay until the next one."""
        self._optimiser.zero_grad(set_to_none=True)
        result = backward()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimiser.step()
        return result


class UpdateDuring:
    """Updates parameters whenever so many bytes of complete gradients wait, and frees these.

    Only where a step is one backward pass in one process, without clipping.

    Args:
        optimiser: of the parameters.
        parameters: of the network.
        waiting_bytes: gradients that may wait.
    """

    def __init__(self, optimiser: Optimizer, parameters: list[Tensor], waiting_bytes: int = GRADIENT_BYTES) -> None:
        self._optimiser, self._most = optimiser, waiting_bytes
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._waiting = 0

    def __call__(self, backward: Callable[[], T]) -> T:
        """See `Update`; no gradients are left."""
        self._optimiser.zero_grad(set_to_none=True)
        with ExitStack() as hooks:
            for parameter in self._parameters:
                # Only for as long as this takes: whoever else calls `backward` wants to see gradients.
                handle = parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
            result = backward()
        self._flush()
        return result

    def _take(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            # A compiled network answers for parameters that have no part in a level's loss, too.
            return
        self._waiting += parameter.grad.nbytes
        if self._waiting >= self._most:
            self._flush()

    def _flush(self) -> None:
        # Parameters whose gradient is not complete have none yet, and the optimiser passes them over.
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._waiting = 0
