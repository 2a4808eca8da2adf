from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mgmrn.updates import UpdateAfter, UpdateDuring

OPTIMISERS = [
    lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda parameters: AdamW(parameters, lr=0.1, weight_decay=0.1),
    lambda parameters: AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(6, 1))


def loss_of(model: nn.Module, step: int) -> Tensor:
    loss: Tensor = model(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().mean()
    return loss


def backward(model: nn.Module, step: int) -> Tensor:
    loss = loss_of(model, step)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("make", OPTIMISERS)
@pytest.mark.parametrize("waiting", [1, 100, 10**9])
def test_updates_in_the_course_of_a_pass_are_those_after_it_bit_by_bit(make: object, waiting: int) -> None:
    one, other = network(), network()
    first: Optimizer = make(one.parameters())  # type: ignore[operator]
    second: Optimizer = make(other.parameters())  # type: ignore[operator]
    after = UpdateAfter(first, list(one.parameters()), None)
    during = UpdateDuring(second, list(other.parameters()), waiting)
    for step in range(4):
        assert torch.equal(after(lambda s=step: backward(one, s)), during(lambda s=step: backward(other, s)))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_few_gradients_stand_in_memory_at_a_time() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)))
    layer = sum(p.nbytes for p in model[0].parameters())
    update = UpdateDuring(SGD(model.parameters(), lr=0.1), list(model.parameters()), layer)
    most = 0

    def look(_: Tensor) -> None:
        nonlocal most
        most = max(most, sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))

    def pass_over() -> None:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(look)  # type: ignore[no-untyped-call]
        model(torch.randn(2, 8)).sum().backward()

    update(pass_over)
    assert 0 < most <= 2 * layer
    assert all(p.grad is None for p in model.parameters())


def test_a_backward_pass_outside_of_an_update_leaves_gradients_and_weights() -> None:
    model = network()
    update = UpdateDuring(SGD(model.parameters(), lr=0.1), list(model.parameters()), 1)
    update(lambda: backward(model, 0))
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, 1)
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_pass_that_fails_leaves_no_hook_behind() -> None:
    model = network()
    update = UpdateDuring(SGD(model.parameters(), lr=0.1), list(model.parameters()), 1)

    def fail() -> None:
        raise ValueError("as a broken picture does")

    with pytest.raises(ValueError, match="broken"):
        update(fail)
    backward(model, 0)
    assert all(p.grad is not None for p in model.parameters())


def test_frozen_parameters_and_those_without_a_part_are_left_alone() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].requires_grad_(False)
    before = [p.detach().clone() for p in model[1:].parameters()]
    update = UpdateDuring(SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), list(model.parameters()), 1)
    update(lambda: model[1](model[0](torch.randn(2, 3))).sum().backward())
    assert all(torch.equal(a, b) for a, b in zip(before, model[1:].parameters(), strict=True))


def test_gradients_are_clipped_together() -> None:
    model = network()
    UpdateAfter(SGD(model.parameters(), lr=0.1), list(model.parameters()), 1e-3)(lambda: backward(model, 0))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.stack([g.norm() for g in gradients]).norm() == pytest.approx(1e-3, rel=1e-3)


def test_a_network_that_is_let_go_leaves_memory() -> None:
    model = network()
    seen = weakref.ref(next(model.parameters()))
    update = UpdateDuring(SGD(model.parameters(), lr=0.1), list(model.parameters()), 1)
    update(lambda: backward(model, 0))
    del model, update
    gc.collect()
    assert seen() is None
