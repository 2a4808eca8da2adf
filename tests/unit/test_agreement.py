"""Mutual agreement: levels learn from their neighbours' predictions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmrn.config import LossConfig
from mgmrn.losses import LossTerms, agreement, zsl_loss
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


def test_the_term_is_weighted_and_part_of_the_total() -> None:
    torch.manual_seed(3)
    output = NetworkOutput({level: torch.randn(B, S, requires_grad=True) for level in ("c4", "c5")}, {})
    targets, classes = torch.randint(U, (B,)), torch.rand(U, S)
    off, on = (
        zsl_loss(output, targets, classes, LossConfig(agreement=weight, level_weights={"c5": 0.5}), global_batch=B)
        for weight in (0.0, 2.0)
    )
    assert float(off.agreement) == 0
    unit = F.normalize(classes, dim=1)
    scores = {level: 20 * F.normalize(v, dim=1) @ unit.T for level, v in output.attributes.items()}
    found = agreement(scores, targets, "even")
    torch.testing.assert_close(on.agreement, found["c4"].mean() + 0.5 * found["c5"].mean())
    torch.testing.assert_close(on.total, off.total + 2 * on.agreement)
    for name in LossTerms._fields:
        if name not in ("agreement", "total"):
            torch.testing.assert_close(getattr(on, name), getattr(off, name), rtol=0, atol=0)


def test_one_level_has_nothing_to_agree_with() -> None:
    output, targets = NetworkOutput({"c5": torch.randn(B, S)}, {}), torch.zeros(B, dtype=torch.long)
    terms = zsl_loss(output, targets, torch.rand(U, S), LossConfig(agreement=1), global_batch=B)
    assert float(terms.agreement) == 0
