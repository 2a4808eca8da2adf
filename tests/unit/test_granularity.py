from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mgmrn.config import GranularityConfig, RegionConfig
from mgmrn.model.granularity import GranularityLevel, halve


@pytest.mark.parametrize(("side", "half"), [(8, 4), (29, 15), (15, 8), (1, 1), (2, 1)])
def test_halve_rounds_up(side: int, half: int) -> None:
    assert halve(torch.randn(1, 2, side, side)).shape == (1, 2, half, half)


def test_halve_is_the_released_interpolation_on_even_grids_and_keeps_every_second_pixel_on_odd_ones() -> None:
    even, odd = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 15, 9)
    torch.testing.assert_close(halve(even), F.interpolate(even, scale_factor=0.5, mode="bilinear", align_corners=True))
    torch.testing.assert_close(halve(odd), odd[:, :, ::2, ::2])


@pytest.mark.parametrize("reduce", ["before", "strided", "after"])
@pytest.mark.parametrize("reductions", [0, 1, 2])
def test_computes_the_equation(reduce: str, reductions: int) -> None:
    torch.manual_seed(0)
    config = GranularityConfig(reduce=reduce, stem="none", group_norm_groups=4)
    level = GranularityLevel(6, 8, reductions, RegionConfig(mode="none"), config)
    assert len(level.blocks) == max(1, reductions)
    x = torch.randn(2, 6, 13, 13)
    y = x
    for step, block in enumerate(level.blocks):
        y = halve(y) if reduce == "before" and step < reductions else y
        y = F.conv2d(y, block.conv.weight, padding=1)
        # The grid's sides are odd: of these, a stride keeps the pixels that halving keeps.
        y = halve(y) if reduce == "strided" and step < reductions else y
        y = F.relu(F.group_norm(y, 4, block.norm.weight, block.norm.bias))
        y = halve(y) if reduce == "after" and step < reductions else y
    torch.testing.assert_close(level(x).features, y)
    assert y.shape[-1] == (13, 7, 4)[reductions]


@pytest.mark.parametrize("reduce", ["before", "strided", "after"])
@pytest.mark.parametrize("side", [12, 14, 15, 29])
def test_every_order_ends_on_the_same_grid(reduce: str, side: int) -> None:
    config = GranularityConfig(reduce=reduce, group_norm_groups=4)
    level = GranularityLevel(6, 8, 2, RegionConfig(mode="none"), config)
    assert level(torch.randn(1, 6, side, side)).features.shape[-1] == -(-side // 4)


@pytest.mark.parametrize("mode", ["none", "released", "regions", "tokens"])
def test_region_tokens_only_in_mode_tokens(mode: str) -> None:
    regions = RegionConfig(mode=mode, count=3, reduced_width=8)
    out = GranularityLevel(16, 8, 1, regions, GranularityConfig(group_norm_groups=4))(torch.randn(2, 16, 6, 6))
    assert (out.region_tokens is not None) == (mode == "tokens")
    assert (out.regions is not None) == (mode in ("regions", "tokens"))
    if out.region_tokens is not None:
        assert out.region_tokens.shape == (2, 3, 8)
