"""Frozen batch norms folded into the convolutions before them.

A frozen norm is a factor and an offset per channel, `γ/√(σ² + ε)` and `β − μ γ/√(σ² + ε)`, which the convolution's weight
and bias can carry:

    norm(W ∗ x) = (W γ/√(σ² + ε)) ∗ x + (β − μ γ/√(σ² + ε))

The function and its gradients (W, γ and β included) are the same up to rounding. What is saved is a pass over the
convolution's map in either direction, and that map itself, which the norm's gradient would need. C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

Named = tuple[nn.Module, str, nn.Module]
"""A module's parent, its name there, and the module."""


class FoldingConv2d(nn.Conv2d):
    """A convolution without bias that computes the frozen batch norm behind it, too; names of parameters stay as they were.

    Args:
        convolution: whose weight is taken over, not copied.
        norm: whose parameters and statistics are read at every call. It stays where it is, and does nothing there.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)
        # In a tuple it is no submodule: its parameters are named by its own place alone.
        self._norm = (norm,)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        (norm,) = self._norm
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        factor = norm.weight * torch.rsqrt(variance + norm.eps)
        return self._conv_forward(x, self.weight * factor[:, None, None, None], norm.bias - mean * factor)


class FoldedNorm2d(nn.BatchNorm2d):
    """Parameters and statistics of a batch norm that the convolution before it computes."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x


def fold_norms(modules: Sequence[Named]) -> None:
    """Replaces each pair of a convolution and the batch norm that follows it, among these modules and within each of them.

    Args:
        modules: in the order in which their parent runs them.
    """
    for (parent, name, module), (next_parent, next_name, following) in pairwise(modules):
        if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d) and module.bias is None:
            norm = FoldedNorm2d(following)
            parent.add_module(name, FoldingConv2d(module, norm))
            next_parent.add_module(next_name, norm)
    for _, _, module in modules:
        fold_norms([(module, name, child) for name, child in module.named_children()])
