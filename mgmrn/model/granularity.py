"""MgM, the multi-granularity module: one level of the pyramid to the common width D and the coarsest level's grid.

B images, C channels of the stage, H W its grid, D common width, h w coarsest grid, K regions. Region mining first, then
blocks of Conv3×3 (no bias) → GroupNorm → ReLU with one 2× reduction per step: bilinear before or after the block, or
the convolution's own stride. A level that needs no reduction has one block without.

Stem, region mining and the first convolution have no non-linearity between them but the assignment, so that the maps
between them need not be computed. With the stem's P, the first convolution's weights V, the assignment q_k and the
scattered descriptors u_k = W z_k,

    y_p = P x_p + Σ_k q_k(p) u_k        conv_V(y) = conv_{V P}(x) + Σ_k conv_{V u_k}(q_k)

where V P is one product a batch, and V u_k one vector an image, region and tap. Where P widens a map (C < D), the
convolution reads C channels in place of D, and a constant map needs no gradient. A P that narrows is applied first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import GranularityConfig, RegionConfig
from mgmrn.model.regions import Regions, ScatteredRegions, build_regions


@dataclass(frozen=True)
class LevelFeatures:
    """Output of a level."""

    features: Float[Tensor, "B D h w"]
    region_tokens: Float[Tensor, "B K D"] | None
    """Mode `tokens`: the regions themselves, for the decoder to attend to."""
    regions: Regions | None


class ConvBlock(nn.Module):
    """Conv3×3 without bias → GroupNorm → ReLU."""

    def __init__(self, channels: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, width)

    def forward(
        self,
        x: Float[Tensor, "B c H W"],
        projection: Float[Tensor, "C c"] | None = None,
        scattered: ScatteredRegions | None = None,
    ) -> Float[Tensor, "B D h w"]:
        """The block on x, on P x with a projection, and on that plus the scattered regions."""
        weight, stride = self.conv.weight, self.conv.stride
        composed = weight if projection is None else torch.einsum("dcij,ce->deij", weight, projection)
        y = F.conv2d(x, composed, stride=stride, padding=1)
        if scattered is not None:
            y = y + scattered.convolve(weight, stride)
        return F.relu(self.norm(y), inplace=True)


class RegionTokens(nn.Module):
    """The K region descriptors as tokens of the common width (mode `tokens`)."""

    def __init__(self, reduced: int, width: int) -> None:
        super().__init__()
        # Drawn from N(0, 1): unit vectors become tokens with entries of order 1, as in normalised maps.
        self.linear = nn.Linear(reduced, width, bias=False)

    def forward(self, descriptors: Float[Tensor, "B K R"]) -> Float[Tensor, "B K D"]:
        return self.linear(descriptors)


class GranularityLevel(nn.Module):
    """One granularity level; `reductions` halvings lead from its grid to that of the coarsest level."""

    def __init__(
        self, channels: int, width: int, reductions: int, regions: RegionConfig, config: GranularityConfig
    ) -> None:
        super().__init__()
        self.reductions = reductions
        self.reduce = config.reduce
        stride = 2 if reductions and config.reduce == "strided" else 1
        self.stem = nn.Conv2d(channels, width, 1, bias=False) if config.stem == "project" else nn.Identity()
        channels = width if config.stem == "project" else channels
        self.regions = build_regions(channels, regions)
        self.region_width = min(channels, regions.reduced_width)
        self.region_tokens = RegionTokens(self.region_width, width) if regions.mode == "tokens" else None
        self.blocks = nn.ModuleList(
            ConvBlock(channels if step == 0 else width, width, config.group_norm_groups, stride)
            for step in range(max(1, reductions))
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> LevelFeatures:
        projection = None
        if isinstance(self.stem, nn.Conv2d) and self.stem.in_channels < self.stem.out_channels:
            projection = self.stem.weight.flatten(1)
        else:
            x = self.stem(x)
        x, regions, scattered = self.regions(x, projection)
        for step, block in enumerate(self.blocks):
            halves = step < self.reductions
            if halves and self.reduce == "before":
                x = halve(x)
                scattered = scattered and replace(scattered, assignment=halve(scattered.assignment))
            x = block(x, projection, scattered)
            projection = scattered = None
            if halves and self.reduce == "after":
                x = halve(x)
        tokens = None if self.region_tokens is None else self.region_tokens(regions.descriptors)
        return LevelFeatures(x, tokens, regions)


def halve(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """2× bilinear reduction, corners aligned as in the released code; an odd side is rounded up."""
    height, width = x.shape[-2:]
    size = ((height + 1) // 2, (width + 1) // 2)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
