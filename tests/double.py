"""Float64 in place of float32, for tests of mathematics: rounding then explains 1e-9 on no CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
"""Bound for two ways to compute the same in float64, in the words of `torch.testing.assert_close`."""


class _Float64ForFloat32(TorchFunctionMode):
    """Gives float64 to code that asks for float32 by name."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        function = Tensor.double if function is Tensor.float else function
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **named)


@contextmanager
def float64() -> Iterator[None]:
    """Computes in float64 what would be computed in float32, in this process: new tensors and conversions."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(before)
