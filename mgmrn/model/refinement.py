"""MRM, mutual refinement of a granularity level by the others (arXiv 2511.08163).

B images, D common width, h w coarsest grid, N tokens.

    SCA(x) = u ⊙ σ(MLP(mean_hw u)) ⊙ σ(Conv3×3 u),   u = Conv1×1(x)

| topology   | further tokens of level l                                                                     |
|------------|-----------------------------------------------------------------------------------------------|
| `none`     | nothing                                                                                       |
| `cascade`  | SCA(concat of all deeper levels), as released; its spatial gate has D channels, as released   |
| `adjacent` | SCA(F_{l−1}) and SCA(F_{l+1}), neighbours among the chosen levels; a spatial gate of 1 channel |

With `detach` the other levels' features are constants for the level that they refine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import Level, RefinementConfig


class SCA(nn.Module):
    """Spatial and channel attention over one map, or over several that are concatenated.

    `hidden` is the width of the channel gate's bottleneck; `spatial_channels` is 1 for one gate per pixel, D for one per
    pixel and channel.
    """

    def __init__(self, in_channels: int, width: int, hidden: int, spatial_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 1)
        self.channel_gate = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.spatial_gate = nn.Conv2d(width, spatial_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """The gated map."""
        u: Tensor = self.conv(x)
        channel = torch.sigmoid(self.channel_gate(u.mean(dim=(2, 3))))[:, :, None, None]
        return u * (channel * torch.sigmoid(self.spatial_gate(u)))


class MutualRefinement(nn.Module):
    """The tokens that each level's decoder attends to."""

    def __init__(self, levels: Sequence[Level], width: int, config: RefinementConfig) -> None:
        super().__init__()
        self.detach = config.detach
        self._groups = {level: source_groups(config.topology, levels, level) for level in levels}
        hidden = max(1, width // config.channel_reduction)
        spatial = width if config.topology == "cascade" else 1
        self.attention = nn.ModuleDict(
            {
                level: nn.ModuleDict({"_".join(g): SCA(len(g) * width, width, hidden, spatial) for g in groups})
                for level, groups in self._groups.items()
                if groups
            }
        )

    def sources(self, level: Level) -> tuple[Level, ...]:
        """Other levels whose features refine this one, finest first."""
        return tuple(sorted({source for group in self._groups[level] for source in group}))

    def forward(self, level: Level, features: Mapping[Level, Float[Tensor, "B D h w"]]) -> Float[Tensor, "B N D"]:
        """Tokens `[F_l ; refined]` of one level, from the features of the level and of its sources."""
        own = features[level]
        tokens = [as_tokens(own)]
        for group in self._groups[level]:
            maps = [features[source].detach() if self.detach else features[source] for source in group]
            if len(maps) > 1:
                # With trunks that round down, grids can differ by one pixel.
                maps = [_on_grid(x, own) for x in maps]
            attention = self.attention[level]["_".join(group)]  # type: ignore[index]
            tokens.append(as_tokens(attention(torch.cat(maps, dim=1))))
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]


def source_groups(topology: str, levels: Sequence[Level], level: Level) -> tuple[tuple[Level, ...], ...]:
    """Levels that refine a level: one group per SCA, whose maps are concatenated."""
    i = levels.index(level)
    match topology:
        case "cascade":
            return (tuple(levels[i + 1 :]),) if i + 1 < len(levels) else ()
        case "adjacent":
            return tuple((levels[j],) for j in (i - 1, i + 1) if 0 <= j < len(levels))
        case _:
            return ()


def as_tokens(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B N D"]:
    """One token per pixel; no copy of a channels-last map."""
    return x.flatten(2).mT


def _on_grid(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
