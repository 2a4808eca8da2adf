from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmrn.config import RegionConfig
from mgmrn.model.network import init_weights
from mgmrn.model.regions import (
    InertRegions,
    RegionMining,
    build_regions,
    decorrelation,
    occupancy,
    occupancy_loss,
)

K, C = 4, 24


def mining(mode: str, channels: int = C, reduced: int = 16) -> RegionMining:
    torch.manual_seed(0)
    unit = build_regions(channels, RegionConfig(mode=mode, count=K, reduced_width=reduced))
    assert isinstance(unit, RegionMining)
    unit.apply(init_weights)
    return unit


def test_none_gives_its_input_and_has_no_parameters() -> None:
    unit = build_regions(C, RegionConfig(mode="none"))
    x = torch.randn(2, C, 5, 5)
    assert unit(x).features is x and unit(x).regions is None
    assert list(unit.parameters()) == []


def test_released_is_exactly_x_over_k_whatever_its_centres_and_they_get_no_gradient() -> None:
    unit = build_regions(C, RegionConfig(mode="released", count=K))
    assert isinstance(unit, InertRegions)
    unit.centres.data.normal_()
    x = torch.randn(2, C, 5, 5, requires_grad=True)
    torch.testing.assert_close(unit(x).features, x / K, rtol=0, atol=0)
    unit(x).features.sum().backward()
    assert unit.centres.grad is None and not unit.centres.requires_grad
    # What the released code writes: the mean over k of q_k ⊙ x. Its gradient with respect to the centres is rounding.
    centres = unit.centres.detach().clone().requires_grad_()
    pixels = x.detach().flatten(2).mT
    q = (-torch.cdist(pixels, centres.expand(2, -1, -1)).square()).softmax(dim=2)
    written = (q.mT[:, :, :, None] * pixels[:, None]).mean(dim=1).mT.reshape(x.shape)
    torch.testing.assert_close(written, x / K)
    assert torch.autograd.grad(written.square().sum(), centres)[0].abs().max() < 1e-4


def equations(unit: RegionMining, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Module docstring, pixel by pixel and region by region."""
    reduced = unit.reduce(x)
    u = reduced / reduced.norm(dim=1, keepdim=True)
    c = unit.centres / unit.centres.norm(dim=1, keepdim=True)
    beta = unit.log_temperature.exp()
    distance = (u[:, None] - c[None, :, :, None, None]).square().sum(dim=2)
    q = (-distance / beta[:, None, None]).softmax(dim=1)
    z = []
    for k in range(K):
        mean = (q[:, k : k + 1] * u).sum(dim=(2, 3)) / q[:, k].sum(dim=(1, 2)).clamp_min(1e-5)[:, None]
        z.append(F.normalize((mean - c[k]) / (beta[k] / 2).sqrt(), dim=1))
    descriptors = torch.stack(z, dim=1)
    out = x
    if unit.scatter is not None:
        out = x + torch.einsum("bkhw,bkr,cr->bchw", q, descriptors, unit.scatter.weight)
    return out, q, descriptors


@pytest.mark.parametrize("mode", ["regions", "tokens"])
@pytest.mark.parametrize("reduced", [16, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_computes_the_equations(mode: str, reduced: int, layout: torch.memory_format) -> None:
    unit = mining(mode, reduced=reduced)
    assert unit.width == min(C, reduced)
    x = torch.randn(3, C, 4, 6).contiguous(memory_format=layout)
    out = unit(x)
    features, q, z = equations(unit, x)
    torch.testing.assert_close(out.features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.regions.assignment, q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.regions.descriptors, z, rtol=1e-4, atol=1e-5)


def test_regions_change_the_output_reach_their_centres_and_differ_between_images() -> None:
    unit = mining("regions")
    x = torch.randn(3, C, 5, 5)
    out = unit(x)
    assert not torch.allclose(out.features, x)
    out.features.square().sum().backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert unit.centres.grad.norm(dim=1).min() > 1e-6
    z = out.regions.descriptors
    assert (z[0] - z[1]).norm() > 0.1
    assert (z[:, 0] - z[:, 1]).norm(dim=1).min() > 0.1
    torch.testing.assert_close(z.norm(dim=2), torch.ones(3, K))


def test_tokens_leave_the_features_alone() -> None:
    x = torch.randn(2, C, 5, 5)
    out = mining("tokens")(x)
    assert out.features is x and out.regions.descriptors.shape == (2, K, 16)


def test_float32_inside_autocast() -> None:
    unit = mining("regions", channels=16)
    x = torch.randn(2, 16, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = unit(x)
        rounded = unit(x.bfloat16())
    assert {out.features.dtype, out.regions.assignment.dtype, rounded.regions.descriptors.dtype} == {torch.float32}
    torch.testing.assert_close(out.regions.assignment, unit(x).regions.assignment, rtol=0, atol=0)


def test_black_pixels_and_blank_maps_stay_finite() -> None:
    unit = mining("regions")
    x = torch.zeros(2, C, 3, 3, requires_grad=True)
    out = unit(x)
    (
        out.features.sum()
        + occupancy_loss(occupancy(out.regions.assignment))
        + decorrelation(out.regions.descriptors).sum()
    ).backward()
    assert torch.isfinite(out.features).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in unit.parameters() if p.grad is not None)


def test_occupancy_is_the_maximum_of_the_blurred_assignment() -> None:
    assignment = torch.zeros(1, 2, 7, 7)
    assignment[0, 0] = 1
    assignment[0, 1, 3, 3] = 1
    present = occupancy(assignment)
    assert present[0, 0] == pytest.approx(1)
    side = math.exp(-2)
    assert present[0, 1] == pytest.approx((1 / (1 + 2 * side)) ** 2, rel=1e-5)
    assert occupancy(torch.full((1, 2, 1, 1), 0.5)).tolist() == [[pytest.approx(0.5)] * 2]


@pytest.mark.parametrize("count", [1, 2, 64])
def test_occupancy_loss_compares_with_scipys_quantiles(count: int) -> None:
    occupancies = torch.rand(count, 3)
    quantiles = scipy.stats.beta(1, 0.001).ppf((np.arange(count) + 0.5) / count)
    values = np.sort(occupancies.numpy().astype(np.float64), axis=0)
    expected = np.abs(np.log(values + 1e-5) - np.log(quantiles + 1e-5)[:, None]).mean()
    assert float(occupancy_loss(occupancies)) == pytest.approx(expected, rel=1e-5)


def test_occupancy_loss_is_lower_for_regions_that_are_present() -> None:
    assert occupancy_loss(torch.full((8, 3), 0.99)) < occupancy_loss(torch.full((8, 3), 0.2))


def test_decorrelation_is_the_mean_squared_cosine_of_pairs() -> None:
    z = F.normalize(torch.randn(5, K, 9), dim=2)
    cosines = torch.einsum("bkr,bjr->bkj", z, z)
    pairs = torch.stack([cosines[:, i, j] ** 2 for i in range(K) for j in range(K) if i != j])
    torch.testing.assert_close(decorrelation(z), pairs.mean(dim=0))
    assert float(decorrelation(torch.eye(K)[None]).abs()) == pytest.approx(0)
