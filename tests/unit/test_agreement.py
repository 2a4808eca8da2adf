"""Mutual agreement: levels learn from their neighbours' predictions."""

import pytest
import torch
from torch import Tensor

from mgmrn.config import LossConfig
from mgmrn.losses import agreement, zsl_loss
from mgmrn.model.network import NetworkOutput

B, U, S = 4, 6, 5
LEVELS = ("c3", "c4", "c5")


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
def test_value_and_gradient_are_those_of_the_equation(teacher: str, levels: tuple[str, ...]) -> None:
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
