"""MgM, the multi-granularity module: one level of the pyramid to the common width D and the coarsest level's grid.

B images, C channels of the stage, H W its grid, D common width, h w coarsest grid, K regions. Region mining first, then
blocks of Conv3×3 (no bias) → GroupNorm → ReLU with one 2× reduction per step: bilinear before or after the block, or
the convolution's own stride. A level that needs no reduction has one block without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import GranularityConfig, RegionConfig
from mgmrn.model.regions import Regions, build_regions


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

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return F.relu(self.norm(self.conv(x)), inplace=True)


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
        features, regions = self.regions(self.stem(x))
        for step, block in enumerate(self.blocks):
            halves = step < self.reductions
            if halves and self.reduce == "before":
                features = halve(features)
            features = block(features)
            if halves and self.reduce == "after":
                features = halve(features)
        tokens = None if self.region_tokens is None else self.region_tokens(regions.descriptors)
        return LevelFeatures(features, tokens, regions)


def halve(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """2× bilinear reduction, corners aligned as in the released code; an odd side is rounded up."""
    height, width = x.shape[-2:]
    size = ((height + 1) // 2, (width + 1) // 2)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
