from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmrn import losses
from mgmrn.config import LossConfig
from mgmrn.losses import zsl_loss
from mgmrn.model.network import NetworkOutput
from mgmrn.model.regions import Regions, decorrelation, occupancy, occupancy_loss

S, U, B = 6, 4, 5


def example(seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attributes = {level: torch.randn(B, S, generator=generator).requires_grad_() for level in ("c4", "c5")}
    return attributes, torch.randint(0, U, (B,), generator=generator), torch.rand(U, S, generator=generator) + 0.1


def regions(seed: int = 0) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    assignment = torch.randn(B, 3, 4, 4, generator=generator).softmax(dim=1)
    return Regions(assignment, F.normalize(torch.randn(B, 3, 8, generator=generator), dim=2))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_is_the_equation(reduction: str) -> None:
    attributes, targets, classes = example()
    mined = regions()
    config = LossConfig(
        scale=7, regression=0.3, regression_reduction=reduction, occupancy=0.2, decorrelation=0.4, label_smoothing=0.1,
        level_weights={"c4": 0.5},
    )  # fmt: skip
    terms = zsl_loss(NetworkOutput(attributes, {"c4": mined}), targets, classes, config, global_batch=B)
    a = classes / classes.norm(dim=1, keepdim=True)
    ce = reg = torch.zeros(())
    for level, v in attributes.items():
        unit = v / v.norm(dim=1, keepdim=True)
        weight = 0.5 if level == "c4" else 1.0
        ce = ce + weight * F.cross_entropy(7 * unit @ a.T, targets, label_smoothing=0.1)
        squared = (unit - a[targets]).square()
        reg = reg + weight * (squared.sum(1) if reduction == "sum" else squared.mean(1)).mean()
    occ = 0.5 * occupancy_loss(occupancy(mined.assignment))
    dec = 0.5 * decorrelation(mined.descriptors).mean()
    expected = (ce + 0.3 * reg + 0.2 * occ + 0.4 * dec, ce, reg, occ, dec)
    found = (terms.total, terms.classification, terms.regression, terms.occupancy, terms.decorrelation)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("cuts", [(1, 4), (2, 3), (1, 1, 3)])
def test_uneven_shards_give_the_gradient_of_one_process(cuts: tuple[int, ...]) -> None:
    attributes, targets, classes = example()
    config = LossConfig(decorrelation=0.5)
    mined = regions()
    descriptors = mined.descriptors.requires_grad_()

    def gradients(parts: list[slice], world_size: int) -> list[Tensor]:
        inputs = [*attributes.values(), descriptors]
        total = torch.zeros(())
        for part in parts:
            output = NetworkOutput(
                {level: v[part] for level, v in attributes.items()},
                {"c5": Regions(mined.assignment[part], descriptors[part])},
            )
            loss = zsl_loss(output, targets[part], classes, config, global_batch=B, world_size=world_size)
            # Data-parallel training averages over ranks.
            total = total + loss.total / world_size
        return list(torch.autograd.grad(total, inputs))

    edges = [0]
    for cut in cuts:
        edges.append(edges[-1] + cut)
    shards = [slice(edges[i], edges[i + 1]) for i in range(len(cuts))]
    for sharded, whole in zip(gradients(shards, len(cuts)), gradients([slice(None)], 1), strict=True):
        torch.testing.assert_close(sharded, whole, rtol=1e-5, atol=1e-6)
    # Micro-batches of one process: the same sum without the average.
    micro = sum(
        zsl_loss(
            NetworkOutput({n: v[p] for n, v in attributes.items()}, {}), targets[p], classes, config, global_batch=B
        ).total
        for p in shards
    )
    whole_loss = zsl_loss(NetworkOutput(attributes, {}), targets, classes, config, global_batch=B).total
    torch.testing.assert_close(micro, whole_loss)


def test_occupancy_over_ranks_keeps_its_value_and_the_global_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    attributes, targets, classes = example()
    config = LossConfig(occupancy=1.0)
    descriptors = regions().descriptors
    shards = [slice(0, 2), slice(2, B)]

    def loss(part: slice, world_size: int) -> losses.LossTerms:
        output = NetworkOutput(
            {n: v[part] for n, v in attributes.items()}, {"c5": Regions(logits.softmax(1)[part], descriptors[part])}
        )
        return zsl_loss(output, targets[part], classes, config, global_batch=B, world_size=world_size)

    whole = loss(slice(None), 1).occupancy
    expected = torch.autograd.grad(whole, logits)[0]
    everything = occupancy(logits.softmax(1)).detach()
    found = torch.zeros_like(logits)
    for part in shards:

        def gather(local: Tensor, part: slice = part) -> Tensor:
            return torch.cat([everything[: part.start], local, everything[part.stop :]])

        monkeypatch.setattr(losses, "gather_images", gather)
        term = loss(part, 2).occupancy
        torch.testing.assert_close(term.detach(), whole.detach())
        found += torch.autograd.grad(term, logits)[0] / 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_zero_attribute_vector_stays_finite() -> None:
    _, targets, classes = example()
    v = torch.zeros(B, S, requires_grad=True)
    terms = zsl_loss(NetworkOutput({"c5": v}, {}), targets, classes, LossConfig(), global_batch=B)
    terms.total.backward()
    assert torch.isfinite(terms.total) and torch.isfinite(v.grad).all()


def test_float32_inside_autocast() -> None:
    attributes, targets, classes = example()
    plain = zsl_loss(NetworkOutput(attributes, {}), targets, classes, LossConfig(), global_batch=B).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = zsl_loss(NetworkOutput(attributes, {}), targets, classes, LossConfig(), global_batch=B).total
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)
