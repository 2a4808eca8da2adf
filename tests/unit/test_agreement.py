"""Mutual agreement: levels learn from their neighbours' predictions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from mgmrn.config import BenchmarkConfig, ExperimentConfig, LossConfig, MgMRNConfig, ScheduleConfig
from mgmrn.losses import LossTerms, agreement, zsl_loss
from mgmrn.model.network import NetworkOutput

B, U, S = 4, 6, 5
LEVELS = ("c3", "c4", "c5")


def scores_of(seed: int, levels: tuple[str, ...] = LEVELS, scale: float = 3.0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        level: (scale * torch.randn(B, U, generator=generator, dtype=torch.float64)).requires_grad_()
        for level in levels
    }
    return drawn, torch.randint(U, (B,), generator=generator)


def by_hand(student: list[float], teachers: list[list[float]], right: int, teacher: str) -> float:
    """The divergence of one image, as the equation of `agreement` says, with plain numbers."""

    def softmax(s: list[float]) -> list[float]:
        exponentials = [float(torch.tensor(x, dtype=torch.float64).exp()) for x in s]
        return [x / sum(exponentials) for x in exponentials]

    known = [softmax(s)[right] for s in teachers]
    weights = [1 / len(teachers)] * len(teachers) if teacher == "even" else [r / sum(known) for r in known]
    taught = softmax([sum(w * s[u] for w, s in zip(weights, teachers, strict=True)) for u in range(U)])
    mean = sum(w * r for w, r in zip(weights, known, strict=True))
    strength = 1.0 if teacher == "even" else 2 * mean / (mean + softmax(student)[right])
    ratios = (torch.tensor([t / p for t, p in zip(taught, softmax(student), strict=True)])).double().log().tolist()
    return strength * sum(t * ratio for t, ratio in zip(taught, ratios, strict=True))


@pytest.mark.parametrize("teacher", ["even", "reliable"])
@pytest.mark.parametrize("levels", [LEVELS[:2], LEVELS])
def test_the_value_is_its_equation(teacher: str, levels: tuple[str, ...]) -> None:
    scores, targets = scores_of(0, levels)
    found = agreement(scores, targets, teacher)
    assert list(found) == list(levels)
    for i, level in enumerate(levels):
        neighbours = [levels[j] for j in (i - 1, i + 1) if 0 <= j < len(levels)]
        for image in range(B):
            teachers = [scores[m][image].tolist() for m in neighbours]
            wanted = by_hand(scores[level][image].tolist(), teachers, int(targets[image]), teacher)
            assert found[level][image].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("teacher", ["even", "reliable"])
def test_the_gradient_is_that_of_a_constant_teacher(teacher: str) -> None:
    scores, targets = scores_of(1)
    agreement(scores, targets, teacher)["c4"].sum().backward()
    assert scores["c3"].grad is None and scores["c5"].grad is None, "no gradient reaches a teacher"
    prediction, known = scores["c4"].detach().softmax(dim=1), {}
    for level in LEVELS:
        known[level] = scores[level].detach().softmax(dim=1).gather(1, targets[:, None])
    weights = torch.stack([known["c3"], known["c5"]]) if teacher == "reliable" else torch.ones(2, B, 1)
    weights = weights / weights.sum(dim=0)
    taught = (weights * torch.stack([scores["c3"].detach(), scores["c5"].detach()])).sum(dim=0).softmax(dim=1)
    mean = (weights * torch.stack([known["c3"], known["c5"]])).sum(dim=0)
    strength = 2 * mean / (mean + known["c4"]) if teacher == "reliable" else 1.0
    torch.testing.assert_close(scores["c4"].grad, strength * (prediction - taught))


@given(st.integers(0, 1000), st.sampled_from(["even", "reliable"]))
def test_identical_levels_agree(seed: int, teacher: str) -> None:
    scores, targets = scores_of(seed, LEVELS[:1])
    alike = dict.fromkeys(LEVELS, scores["c3"])
    for divergences in agreement(alike, targets, teacher).values():
        torch.testing.assert_close(divergences, torch.zeros(B, dtype=torch.float64))


@given(st.integers(0, 1000))
def test_equal_reliabilities_give_even_teachers(seed: int) -> None:
    """The order of the wrong classes does not matter to what a level knows of the right one."""
    scores, targets = scores_of(seed, LEVELS[:1])
    levels = {}
    for number, level in enumerate(LEVELS):
        rolled = scores["c3"].detach().clone()
        for image, right in enumerate(targets.tolist()):
            wrong = [u for u in range(U) if u != right]
            rolled[image, wrong] = rolled[image, wrong].roll(number)
        levels[level] = rolled
    even, reliable = (agreement(levels, targets, teacher) for teacher in ("even", "reliable"))
    for level in LEVELS:
        torch.testing.assert_close(even[level], reliable[level])


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


def test_one_level_and_levels_that_are_trained_one_by_one_cannot_agree() -> None:
    output = NetworkOutput({"c5": torch.randn(B, S)}, {})
    terms = zsl_loss(
        output, torch.zeros(B, dtype=torch.long), torch.rand(U, S), LossConfig(agreement=1), global_batch=B
    )
    assert float(terms.agreement) == 0
    sequential = ScheduleConfig(order="sequential")
    with pytest.raises(ValidationError, match="compares levels of one pass"):
        ExperimentConfig(
            benchmark=BenchmarkConfig(name="TINY"),
            model=MgMRNConfig(),
            loss=LossConfig(agreement=1.0),
            schedule=sequential,
        )
