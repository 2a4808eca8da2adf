"""Our head against the same head written out plainly, in value, loss and gradient."""

from __future__ import annotations

import pytest
import torch

from mgmrn.config import GranularityConfig, LossConfig, RefinementConfig
from mgmrn.losses import zsl_loss
from mgmrn.model.network import MgMRN
from tests.double import TOLERANCE, float64
from tests.reference.plain_head import PlainHead, head_loss
from tests.tiny import small_network

B, S, L, U = 3, 5, 7, 4
CHANNELS = {"c4": 6, "c5": 10}
REDUCTIONS = {"c4": 1, "c5": 0}


@float64()
def test_folded_and_plain_heads_are_the_same_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    config = small_network(
        levels=("c4", "c5"), width=16, attention_width=12, refinement=RefinementConfig(topology="none")
    ).model_copy(update={"granularity": GranularityConfig(reduce="after", group_norm_groups=4)})
    ours = MgMRN(config, CHANNELS, torch.randn(S, L))
    plain = PlainHead(ours.state_dict(), config.levels, REDUCTIONS, groups=4)
    maps = {"c4": torch.randn(B, 6, 6, 6), "c5": torch.randn(B, 10, 3, 3)}
    targets, classes = torch.tensor([0, 3, 1]), torch.rand(U, S)
    output, vectors = ours(maps), plain(maps)
    for level, wanted in vectors.items():
        torch.testing.assert_close(output.attributes[level], wanted, **TOLERANCE)
    found = zsl_loss(output, targets, classes, LossConfig(), global_batch=B).total
    wanted = head_loss(vectors, targets, classes, scale=20.0, regression=0.1)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    found.backward()
    wanted.backward()
    plain_gradients = {name: weight.grad for name, weight in plain.named().items()}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, plain_gradients[name], **TOLERANCE)
