"""MRM, mutual refinement of a granularity level by the others (arXiv 2511.08163).

B images, D common width, h w coarsest grid, N tokens, K regions of R channels, J regions of all neighbours of a level.

    SCA(x) = u ⊙ σ(MLP(mean_hw u)) ⊙ σ(Conv3×3 u),   u = Conv1×1(x)
    RA(F_l)_p = γ ⊙ Σ_j softmax_j(⟨W_q F_lp, W_k^m z_j⟩ / √R) W_v^m z_j,   j: the regions z of the neighbours m,   γ = 0 at the start

| topology   | further tokens of level l                                                                     |
|------------|-----------------------------------------------------------------------------------------------|
| `none`     | nothing                                                                                       |
| `cascade`  | SCA(concat of all deeper levels), as released; its spatial gate has D channels, as released   |
| `adjacent` | SCA(F_{l−1}) and SCA(F_{l+1}), neighbours among the chosen levels; a spatial gate of 1 channel |
| `regions`  | nothing; the level's own pixels become F_l + RA(F_l)                                          |

With `detach` the other levels' features and regions are constants for the level that they refine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import Level, RefinementConfig
from mgmrn.model.granularity import LevelFeatures


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
        u: Tensor = self.conv(x)
        channel = torch.sigmoid(self.channel_gate(u.mean(dim=(2, 3))))[:, :, None, None]
        return u * (channel * torch.sigmoid(self.spatial_gate(u)))


class RegionAttention(nn.Module):
    """Residual of a level's pixels, read from the regions of its neighbours; `region_widths` are their channels R, by level."""

    def __init__(self, width: int, region_widths: Mapping[Level, int]) -> None:
        super().__init__()
        self.query_width = max(region_widths.values())
        self.query = nn.Linear(width, self.query_width, bias=False)
        self.keys = nn.ModuleDict({m: nn.Linear(r, self.query_width, bias=False) for m, r in region_widths.items()})
        self.values = nn.ModuleDict({m: nn.Linear(r, width, bias=False) for m, r in region_widths.items()})
        self.gain = nn.Parameter(torch.zeros(width))

    def attention(
        self, tokens: Float[Tensor, "B N D"], regions: Mapping[Level, Float[Tensor, "B K R"]]
    ) -> Float[Tensor, "B N J"]:
        """Attention of each pixel to the regions of all neighbours, finest neighbour first; sums to one over J."""
        keys = torch.cat([self.keys[m](z) for m, z in regions.items()], dim=1)
        return (self.query(tokens) @ keys.mT / self.query_width**0.5).softmax(dim=2)

    def forward(
        self, tokens: Float[Tensor, "B N D"], regions: Mapping[Level, Float[Tensor, "B K R"]]
    ) -> Float[Tensor, "B N D"]:
        values = torch.cat([self.values[m](z) for m, z in regions.items()], dim=1)
        return self.gain * (self.attention(tokens, regions) @ values)


class MutualRefinement(nn.Module):
    """The tokens that each level's decoder attends to; `region_widths` are the channels of each level's regions."""

    def __init__(
        self, levels: Sequence[Level], width: int, config: RefinementConfig, region_widths: Mapping[Level, int]
    ) -> None:
        super().__init__()
        self.detach = config.detach
        self._sources = {level: source_groups(config.topology, levels, level) for level in levels}
        self.token_groups = {level: () if config.topology == "regions" else self._sources[level] for level in levels}
        """Levels whose refined maps are further tokens of each level, in the order of those tokens."""
        self.exchange = nn.ModuleDict()
        if config.topology == "regions":
            for level in levels:
                if sources := self.sources(level):
                    self.exchange[level] = RegionAttention(width, {m: region_widths[m] for m in sources})
        hidden = max(1, width // config.channel_reduction)
        spatial = width if config.topology == "cascade" else 1
        self.attention = nn.ModuleDict(
            {
                level: nn.ModuleDict({"_".join(g): SCA(len(g) * width, width, hidden, spatial) for g in groups})
                for level, groups in self.token_groups.items()
                if groups
            }
        )

    def sources(self, level: Level) -> tuple[Level, ...]:
        """Other levels whose features refine this one, finest first."""
        return tuple(sorted({source for group in self._sources[level] for source in group}))

    def used_regions(
        self, level: Level, outputs: Mapping[Level, LevelFeatures]
    ) -> dict[Level, Float[Tensor, "B K h w"]]:
        """Attention of a level's pixels to each region of each neighbour (`regions`), which sums to one over all of them."""
        if level not in self.exchange:
            return {}
        own, regions = outputs[level].features, self._regions(level, outputs)
        attention = self.exchange[level].attention(as_tokens(own), regions)  # type: ignore[operator]
        parts = attention.mT.split([z.shape[1] for z in regions.values()], dim=1)
        return {m: part.reshape(*part.shape[:2], *own.shape[-2:]) for m, part in zip(regions, parts, strict=True)}

    def forward(self, level: Level, outputs: Mapping[Level, LevelFeatures]) -> Float[Tensor, "B N D"]:
        """Tokens `[F_l ; refined]` of one level, from the outputs of the level and of its sources."""
        own = outputs[level].features
        tokens = [as_tokens(own)]
        if level in self.exchange:
            tokens[0] = tokens[0] + self.exchange[level](tokens[0], self._regions(level, outputs))
        for group in self.token_groups[level]:
            maps = [self._constant(outputs[source].features) for source in group]
            if len(maps) > 1:
                # With trunks that round down, grids can differ by one pixel.
                maps = [_on_grid(x, own) for x in maps]
            attention = self.attention[level]["_".join(group)]  # type: ignore[index]
            tokens.append(as_tokens(attention(torch.cat(maps, dim=1))))
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]

    def _regions(self, level: Level, outputs: Mapping[Level, LevelFeatures]) -> dict[Level, Tensor]:
        found = {source: outputs[source].regions for source in self.sources(level)}
        return {source: self._constant(regions.descriptors) for source, regions in found.items() if regions is not None}

    def _constant(self, x: Tensor) -> Tensor:
        return x.detach() if self.detach else x


def source_groups(topology: str, levels: Sequence[Level], level: Level) -> tuple[tuple[Level, ...], ...]:
    """Levels that refine a level, in groups whose maps are concatenated."""
    i = levels.index(level)
    match topology:
        case "cascade":
            return (tuple(levels[i + 1 :]),) if i + 1 < len(levels) else ()
        case "adjacent" | "regions":
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
