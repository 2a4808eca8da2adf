"""The head of `mgmrn` against the same head written out plainly, in value, loss and gradient, with every option."""

import pytest
import torch

from mgmrn.config import LossConfig, RefinementConfig
from mgmrn.losses import zsl_loss
from mgmrn.model.network import MgMRN
from tests.double import TOLERANCE, float64
from tests.reference.plain_head import PlainHead, head_loss
from tests.tiny import small_network

B, S, L, U = 3, 5, 7, 4
CHANNELS, SIDES = {"c3": 6, "c4": 8, "c5": 10}, {"c3": 13, "c4": 7, "c5": 4}


@pytest.mark.parametrize("width", [16, 8], ids=["reduced regions", "full regions"])
@pytest.mark.parametrize(
    ("mode", "reduce", "topology", "detach", "temperature"),
    [
        ("regions", "after", "none", True, "none"),
        ("regions", "before", "cascade", False, "sqrt"),
        ("regions", "strided", "adjacent", True, "learned"),
        ("tokens", "strided", "adjacent", False, "none"),
        ("tokens", "after", "cascade", True, "learned"),
        ("released", "after", "cascade", True, "none"),
        ("none", "before", "adjacent", True, "sqrt"),
    ],
)
@float64()
def test_folded_and_plain_heads_are_the_same(mode, reduce, topology, detach, temperature, width):
    torch.manual_seed(0)
    refinement = RefinementConfig(topology=topology, detach=detach, channel_reduction=4)
    parts = {"levels": tuple(CHANNELS), "width": width, "attention_width": 12, "refinement": refinement}
    config = small_network(regions=mode, temperature=temperature, reduce=reduce, **parts)
    ours = MgMRN(config, CHANNELS, torch.randn(S, L))
    for name, parameter in ours.named_parameters():
        if name.endswith((".bias", "log_temperature")):
            torch.nn.init.normal_(parameter, std=0.5)
    plain = PlainHead(ours.state_dict(), config)
    maps = {level: torch.randn(B, channels, SIDES[level], SIDES[level]) for level, channels in CHANNELS.items()}
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
        elif plain_gradients[name] is not None:
            assert plain_gradients[name].abs().max() < 1e-9, "an untrained parameter has no effect"
