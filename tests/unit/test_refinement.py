from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mgmrn.config import RefinementConfig
from mgmrn.model.refinement import SCA, MutualRefinement, as_tokens, source_groups

LEVELS = ("c3", "c4", "c5")
D = 8


def features(requires_grad: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {level: torch.randn(2, D, 3, 4, generator=generator).requires_grad_(requires_grad) for level in LEVELS}


def refinement(topology: str, detach: bool = True) -> MutualRefinement:
    torch.manual_seed(0)
    return MutualRefinement(LEVELS, D, RefinementConfig(topology=topology, detach=detach, channel_reduction=4))


@pytest.mark.parametrize(
    ("topology", "groups"),
    [
        ("none", [(), (), ()]),
        ("cascade", [(("c4", "c5"),), (("c5",),), ()]),
        ("adjacent", [(("c4",),), (("c3",), ("c5",)), (("c4",),)]),
    ],
)
def test_who_refines_whom(topology: str, groups: list[tuple[tuple[str, ...], ...]]) -> None:
    assert [source_groups(topology, LEVELS, level) for level in LEVELS] == groups
    assert refinement(topology).sources("c3") == tuple(sorted({s for g in groups[0] for s in g}))


def test_levels_need_not_be_consecutive_stages_to_be_neighbours() -> None:
    assert source_groups("adjacent", ("c2", "c5"), "c2") == (("c5",),)


@pytest.mark.parametrize("spatial", [1, D])
def test_sca_computes_the_equation(spatial: int) -> None:
    torch.manual_seed(0)
    sca = SCA(2 * D, D, 2, spatial)
    x = torch.randn(2, 2 * D, 3, 4)
    u = F.conv2d(x, sca.conv.weight, sca.conv.bias)
    first, _, second = sca.channel_gate
    channel = torch.sigmoid(second(torch.relu(first(u.mean(dim=(2, 3))))))
    gate = torch.sigmoid(F.conv2d(u, sca.spatial_gate.weight, sca.spatial_gate.bias, padding=1))
    torch.testing.assert_close(sca(x), u * channel[:, :, None, None] * gate)


@pytest.mark.parametrize(("topology", "maps"), [("none", 1), ("cascade", 2), ("adjacent", 3)])
def test_tokens_are_the_level_then_what_refines_it(topology: str, maps: int) -> None:
    x = features()
    tokens = refinement(topology)("c4", x)
    assert tokens.shape == (2, 12 * maps, D)
    torch.testing.assert_close(tokens[:, :12], as_tokens(x["c4"]))


@pytest.mark.parametrize("topology", ["cascade", "adjacent"])
@pytest.mark.parametrize("detach", [True, False])
def test_detach_cuts_the_sources_and_nothing_else(topology: str, detach: bool) -> None:
    x = features(requires_grad=True)
    refinement(topology, detach)("c4", x).square().sum().backward()
    assert x["c4"].grad is not None
    assert (x["c5"].grad is None) == detach
    assert (x["c3"].grad is not None) == (topology == "adjacent" and not detach)


def test_concatenated_grids_that_a_trunk_rounded_differently_are_matched() -> None:
    x = {level: torch.randn(1, D, side, side) for level, side in zip(LEVELS, (4, 4, 3), strict=True)}
    assert refinement("cascade")("c3", x).shape == (1, 32, D)
