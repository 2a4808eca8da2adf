"""A checkpoint in the names of the authors' code, and its equations written out plainly, against our network.

The state dict has the shapes of the one consistent reading of that code (c3 512, c4 1024, c5 2048), at a small width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet101

from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head
from tests.double import TOLERANCE, float64
from tests.reference.released_checkpoint import load_released

D, K, M, S, L, HIDDEN, B = 64, 3, 24, 6, 10, 16, 2
CHANNELS = {"s3": 512, "s4": 1024, "s5": 2048}
BLOCKS = {"s3": 2, "s4": 1, "s5": 1}

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trunk() -> State:
    torch.manual_seed(0)
    return {f"backbone.{n}": v for n, v in resnet101().state_dict().items() if not n.startswith("fc.")}


def make_state(trunk: State, *, convolutional: bool = False, bias: bool = True, spatial: int = D) -> State:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 4
        return torch.randn(shape, generator=g) / fan**0.5

    state = dict(trunk)
    for stage, channels in CHANNELS.items():
        state[f"{stage}.group.weight"] = draw(K, channels, 1, 1)
        state[f"{stage}.group.smooth_factor"] = draw(K)
        for i in range(BLOCKS[stage]):
            state[f"{stage}.conv.block.{i}.block.0.weight"] = draw(D, channels if i == 0 else D, 3, 3)
            state[f"{stage}.conv.block.{i}.block.1.weight"] = 1 + draw(D)
            state[f"{stage}.conv.block.{i}.block.1.bias"] = draw(D)
    gate = (1, 1) if convolutional else ()
    for lateral, sources in (("lateral_conv1", 2), ("lateral_conv2", 1)):
        state[f"{lateral}.conv.weight"] = draw(D, sources * D, 1, 1)
        state[f"{lateral}.c_attn.0.weight"] = draw(HIDDEN, D, *gate)
        state[f"{lateral}.c_attn.2.weight"] = draw(D, HIDDEN, *gate)
        state[f"{lateral}.s_attn.0.weight"] = draw(spatial, D, 3, 3)
        if bias:
            for part, size in (("conv", D), ("c_attn.0", HIDDEN), ("c_attn.2", D), ("s_attn.0", spatial)):
                state[f"{lateral}.{part}.bias"] = draw(size)
    for i in (1, 2, 3):
        for name, shape in (("QueryW", (M, L)), ("KeyW", (M, D)), ("ValueW", (M, D)), ("W_o", (D, M))):
            state[f"{name}{i}.weight"], state[f"{name}{i}.bias"] = draw(*shape), draw(shape[0])
        state[f"V_att_final_branch{i}"] = draw(S, D)
    return state


def plain_forward(state: State, maps: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """METHOD: region mining as written there, then conv–norm–ReLU–halve, cascade, attribute attention."""

    def group(stage: str, x: Tensor) -> Tensor:
        centres, beta = state[f"{stage}.group.weight"].flatten(1), torch.sigmoid(state[f"{stage}.group.smooth_factor"])
        distance = (x[:, None] - centres[None, :, :, None, None]).square().sum(dim=2)
        q = (-distance / beta[:, None, None]).softmax(dim=1)
        return torch.stack([q[:, k : k + 1] * x for k in range(K)]).mean(dim=0)

    def granularity(stage: str, x: Tensor, reductions: int) -> Tensor:
        x = group(stage, x)
        for i in range(BLOCKS[stage]):
            name = f"{stage}.conv.block.{i}.block"
            x = F.conv2d(x, state[f"{name}.0.weight"], padding=1)
            x = F.relu(F.group_norm(x, 32, state[f"{name}.1.weight"], state[f"{name}.1.bias"]))
            if i < reductions:
                x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=True)
        return x

    def sca(name: str, x: Tensor) -> Tensor:
        def bias(part: str) -> Tensor | None:
            return state.get(f"{name}.{part}.bias")

        u = F.conv2d(x, state[f"{name}.conv.weight"], bias("conv"))
        mean = u.mean(dim=(2, 3))
        first, second = (state[f"{name}.c_attn.{i}.weight"].flatten(1) for i in (0, 2))
        channel = torch.sigmoid(F.linear(F.relu(F.linear(mean, first, bias("c_attn.0"))), second, bias("c_attn.2")))
        spatial = torch.sigmoid(F.conv2d(u, state[f"{name}.s_attn.0.weight"], bias("s_attn.0"), padding=1))
        return u * channel[:, :, None, None] * spatial

    def decode(i: int, tokens: Tensor) -> Tensor:
        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, state[f"{name}{i}.weight"], state[f"{name}{i}.bias"])

        attention = (linear("QueryW", words) @ linear("KeyW", tokens).transpose(1, 2)).softmax(dim=2)
        found = linear("W_o", attention @ linear("ValueW", tokens))
        return torch.einsum("bsd,sd->bs", found, state[f"V_att_final_branch{i}"])

    f3, f4 = granularity("s3", maps["c3"], 2), granularity("s4", maps["c4"], 1)
    f5 = granularity("s5", maps["c5"], 0)
    r3, r4 = sca("lateral_conv1", torch.cat([f4, f5], dim=1)), sca("lateral_conv2", f5)
    tokens = {
        1: torch.cat([f3.flatten(2), r3.flatten(2)], dim=2).transpose(1, 2),
        2: torch.cat([f4.flatten(2), r4.flatten(2)], dim=2).transpose(1, 2),
        3: f5.flatten(2).transpose(1, 2),
    }
    return {level: decode(i, tokens[i]) for i, level in ((1, "c3"), (2, "c4"), (3, "c5"))}


def example_maps() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    sides = {"c3": (512, 8), "c4": (1024, 4), "c5": (2048, 2)}
    return {level: torch.randn(B, c, side, side, generator=g) / 4 for level, (c, side) in sides.items()}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"convolutional": True},
        {"bias": False},
        {"spatial": 1},
        {"convolutional": True, "bias": False, "spatial": 1},
    ],
    ids=str,
)
@float64()
def test_the_head_computes_the_released_equations(trunk: State, variant: dict[str, int]) -> None:
    state = make_state(trunk, **variant)  # type: ignore[arg-type]
    words = torch.randn(S, L, generator=torch.Generator().manual_seed(3))
    config, weights = load_released(state)
    head = build_head(config, {"c3": 512, "c4": 1024, "c5": 2048}, words)
    named = {n.removeprefix("head."): v for n, v in weights.items() if n.startswith("head.")}
    head.load_state_dict({**named, "word_vectors": words})
    maps = example_maps()
    expected = plain_forward(state, maps, words)
    found = head.eval()(maps).attributes
    for level, wanted in expected.items():
        torch.testing.assert_close(found[level], wanted, **TOLERANCE)


def test_sizes_are_read_off_the_shapes(trunk: State) -> None:
    config, _ = load_released(make_state(trunk))
    assert (config.width, config.regions.count, config.decoder.attention_width) == (D, K, M)
    assert config.refinement.channel_reduction == D // HIDDEN
    assert (config.regions.mode, config.granularity.reduce, config.refinement.topology) == (
        "released",
        "after",
        "cascade",
    )
    assert config.refinement.detach and config.decoder.temperature == "none" and config.levels == ("c3", "c4", "c5")


def test_a_checkpoint_becomes_a_whole_network(trunk: State) -> None:
    state = make_state(trunk)
    words = torch.randn(S, L)
    config, weights = load_released(state)
    backbone = build_backbone(config.backbone, config.levels)
    model = ImageModel(backbone, build_head(config, backbone.channels, words)).eval()
    model.load_state_dict({**weights, "head.word_vectors": words})
    with torch.inference_mode():
        images = torch.randn(1, 3, 64, 64)
        expected = plain_forward(state, backbone(images), words)
        found = model(images).attributes
    for level, wanted in expected.items():
        torch.testing.assert_close(found[level], wanted, rtol=1e-4, atol=1e-5)
