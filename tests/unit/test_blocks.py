"""Properties of blocks and loss beyond the equations that tests/golden/test_plain_head.py compares."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmrn.config import LossConfig, RefinementConfig, RegionConfig
from mgmrn.losses import LossTerms, agreement, zsl_loss
from mgmrn.model.granularity import LevelFeatures
from mgmrn.model.network import NetworkOutput, init_weights
from mgmrn.model.refinement import MutualRefinement, source_groups
from mgmrn.model.regions import Regions, build_regions, decorrelation, occupancy, occupancy_loss

LEVELS = ("c3", "c4", "c5")
K, C, D, B, S, U = 4, 24, 8, 5, 6, 4


def test_neighbours_need_neither_be_consecutive_stages_nor_have_equal_grids() -> None:
    assert source_groups("adjacent", ("c2", "c5"), "c2") == (("c5",),)
    refinement = MutualRefinement(LEVELS, D, RefinementConfig(topology="cascade", channel_reduction=4), {})
    sides = {"c3": 4, "c4": 4, "c5": 3}
    x = {level: LevelFeatures(torch.randn(1, D, side, side), None, None) for level, side in sides.items()}
    assert refinement("c3", x).shape == (1, 32, D)


def test_blank_maps_stay_finite() -> None:
    torch.manual_seed(0)
    unit = build_regions(C, RegionConfig(mode="regions", count=K, reduced_width=16)).apply(init_weights)
    x = torch.zeros(2, C, 3, 3, requires_grad=True)
    _, regions, scattered = unit(x)
    features = scattered.convolve(torch.ones(1, C, 3, 3), (1, 1))
    regularisers = occupancy_loss(occupancy(regions.assignment)) + decorrelation(regions.descriptors).sum()
    (features.sum() + regularisers).backward()
    values: list[Tensor] = [features, x.grad, *(p.grad for p in unit.parameters() if p.grad is not None)]
    assert all(torch.isfinite(value).all() for value in values)


def test_occupancy_is_the_maximum_of_the_blurred_assignment() -> None:
    assignment = torch.zeros(1, 2, 7, 7)
    assignment[0, 0] = 1
    assignment[0, 1, 3, 3] = 1
    expected = [1, (1 / (1 + 2 * math.exp(-2))) ** 2]
    assert occupancy(assignment)[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_occupancy_loss_compares_with_scipys_quantiles(count: int) -> None:
    occupancies = torch.rand(count, 3)
    quantiles = scipy.stats.beta(1, 0.001).ppf((np.arange(count) + 0.5) / count)
    values = np.sort(occupancies.numpy().astype(np.float64), axis=0)
    expected = np.abs(np.log(values + 1e-5) - np.log(quantiles + 1e-5)[:, None]).mean()
    assert float(occupancy_loss(occupancies)) == pytest.approx(expected, rel=1e-5)


def test_decorrelation_is_the_mean_squared_cosine_of_pairs() -> None:
    z = F.normalize(torch.randn(5, K, 9), dim=2)
    cosines = torch.einsum("bkr,bjr->bkj", z, z)
    pairs = torch.stack([cosines[:, i, j] ** 2 for i in range(K) for j in range(K) if i != j])
    torch.testing.assert_close(decorrelation(z), pairs.mean(dim=0))
    assert float(decorrelation(torch.eye(K)[None]).abs()) == pytest.approx(0)


def example() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Attribute vectors, targets and class attributes."""
    attributes = {level: torch.randn(B, S) for level in ("c4", "c5")}
    return attributes, torch.randint(0, U, (B,)), torch.rand(U, S) + 0.1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_its_equation(reduction: str) -> None:
    attributes, targets, classes = example()
    mined = Regions(torch.randn(B, 3, 4, 4).softmax(dim=1), F.normalize(torch.randn(B, 3, 8), dim=2))
    weights = {"regression": 0.3, "occupancy": 0.2, "decorrelation": 0.4, "agreement": 2, "level_weights": {"c4": 0.5}}
    config = LossConfig(scale=7, regression_reduction=reduction, label_smoothing=0.1, **weights)
    terms = zsl_loss(NetworkOutput(attributes, {"c4": mined}), targets, classes, config, global_batch=B)
    a = classes / classes.norm(dim=1, keepdim=True)
    ce = reg = torch.zeros(())
    scores = {}
    for level, v in attributes.items():
        unit = v / v.norm(dim=1, keepdim=True)
        weight = 0.5 if level == "c4" else 1.0
        scores[level] = 7 * unit @ a.T
        ce = ce + weight * F.cross_entropy(scores[level], targets, label_smoothing=0.1)
        squared = (unit - a[targets]).square()
        reg = reg + weight * (squared.sum(1) if reduction == "sum" else squared.mean(1)).mean()
    occ = 0.5 * occupancy_loss(occupancy(mined.assignment))
    dec = 0.5 * decorrelation(mined.descriptors).mean()
    divergence = agreement(scores, targets, "even")
    agr = 0.5 * divergence["c4"].mean() + divergence["c5"].mean()
    expected = (ce + 0.3 * reg + 0.2 * occ + 0.4 * dec + 2 * agr, ce, reg, occ, dec, agr)
    for name, wanted in zip(LossTerms._fields, expected, strict=True):
        torch.testing.assert_close(getattr(terms, name), wanted)


def test_the_loss_is_finite_for_zero_vectors_and_float32_inside_autocast() -> None:
    attributes, targets, classes = example()
    attributes["c5"] = torch.zeros(B, S, requires_grad=True)
    plain = zsl_loss(NetworkOutput(attributes, {}), targets, classes, LossConfig(), global_batch=B).total
    plain.backward()
    assert torch.isfinite(plain) and torch.isfinite(attributes["c5"].grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = zsl_loss(NetworkOutput(attributes, {}), targets, classes, LossConfig(), global_batch=B).total
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def taught(scores: dict[str, Tensor], targets: Tensor, level: str, teacher: str) -> tuple[Tensor, Tensor]:
    """What a level is taught, and how strongly, as the equation of `agreement` says."""
    levels = list(scores)
    neighbours = [m for m in levels if abs(levels.index(m) - levels.index(level)) == 1]
    known = {m: scores[m].softmax(dim=1)[range(B), targets][:, None] for m in levels}
    weights = {m: known[m] if teacher == "reliable" else torch.ones(B, 1) for m in neighbours}
    total = sum(weights.values())
    mean = sum(weights[m] / total * known[m] for m in neighbours)
    strength = 2 * mean / (mean + known[level]) if teacher == "reliable" else torch.ones(B, 1)
    return sum(weights[m] / total * scores[m] for m in neighbours).softmax(dim=1), strength


@pytest.mark.parametrize("teacher", ["even", "reliable"])
@pytest.mark.parametrize("levels", [LEVELS[:2], LEVELS])
def test_agreement_and_its_gradient_are_those_of_the_equation(teacher: str, levels: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    scores = {level: (3 * torch.randn(B, U, dtype=torch.float64)).requires_grad_() for level in levels}
    targets = torch.randint(U, (B,))
    constant = {level: one.detach() for level, one in scores.items()}
    found = agreement(scores, targets, teacher)
    assert list(found) == list(levels)
    for level in levels:
        wanted, strength = taught(constant, targets, level, teacher)
        prediction = constant[level].softmax(dim=1)
        divergence = (strength * wanted * (wanted / prediction).log()).sum(dim=1)
        torch.testing.assert_close(found[level], divergence, rtol=1e-6, atol=1e-6)
        gradients = torch.autograd.grad(found[level].sum(), list(scores.values()), allow_unused=True)
        for other, gradient in zip(levels, gradients, strict=True):
            if other == level:
                torch.testing.assert_close(gradient, strength * (prediction - wanted))
            else:
                assert gradient is None, "no gradient reaches a teacher"


def test_one_level_has_nothing_to_agree_with() -> None:
    output, targets = NetworkOutput({"c5": torch.randn(B, S)}, {}), torch.zeros(B, dtype=torch.long)
    terms = zsl_loss(output, targets, torch.rand(U, S), LossConfig(agreement=1), global_batch=B)
    assert float(terms.agreement) == 0
