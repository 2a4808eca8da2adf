"""The whole network: every mode trains, levels sum to the joint network, and a level computes only what it needs."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mgmrn.config import AttributeNetworkConfig, ESZSLConfig, LossConfig, MgMRNConfig, RefinementConfig
from mgmrn.losses import zsl_loss
from mgmrn.model.network import AttributeNetwork, MgMRN, build_head
from tests.double import TOLERANCE, float64
from tests.tiny import small_network

CHANNELS = {"c2": 6, "c3": 10, "c4": 12, "c5": 20}
SIDES = {"c2": 15, "c3": 8, "c4": 4, "c5": 2}
S, L, U, B = 5, 7, 4, 3
THREE = ("c3", "c4", "c5")
TOPOLOGIES = ("none", "cascade", "adjacent", "regions")


def config(
    levels: tuple[str, ...] = THREE,
    mode: str = "regions",
    topology: str = "adjacent",
    detach: bool = True,
    **settings: Any,
) -> MgMRNConfig:
    refinement = RefinementConfig(topology=topology, detach=detach, channel_reduction=4)
    return small_network(levels=levels, regions=mode, refinement=refinement, attention_width=6, **settings)


def head(settings: MgMRNConfig) -> MgMRN:
    """A head with an attribute without a word."""
    torch.manual_seed(0)
    return MgMRN(settings, CHANNELS, torch.randn(S, L) * (torch.arange(S) != 2)[:, None])


def maps_of(levels: tuple[str, ...], requires_grad: bool = False) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {level: (B, CHANNELS[level], SIDES[level], SIDES[level]) for level in levels}
    return {level: torch.randn(shape, generator=g).requires_grad_(requires_grad) for level, shape in shapes.items()}


def loss_of(output: Any) -> Tensor:
    classes = torch.rand(U, S, generator=torch.Generator().manual_seed(2))
    terms = LossConfig(occupancy=0.1, decorrelation=0.1)
    return zsl_loss(output, torch.tensor([0, 1, 3]), classes, terms, global_batch=B).total


SUBSETS = [s for n in (1, 2, 3, 4) for s in itertools.combinations(CHANNELS, n)]
TEMPERATURES = itertools.cycle(("none", "sqrt", "learned"))
MODES = ("none", "released", "regions", "tokens")
COMBINATIONS = [
    (mode, topology, detach)
    for mode, topology, detach in itertools.product(MODES, TOPOLOGIES, (True, False))
    if topology != "regions" or mode in ("regions", "tokens")
]


@pytest.mark.parametrize(("levels", "temperature"), list(zip(SUBSETS, TEMPERATURES, strict=False)))
def test_every_mode_trains_on_every_choice_of_levels(levels: tuple[str, ...], temperature: str) -> None:
    # Choices of fewer levels share out the combinations; all four levels meet each of them.
    number = SUBSETS.index(levels)
    for mode, topology, detach in COMBINATIONS if len(levels) == 4 else COMBINATIONS[number % 5 :: 5]:
        network = head(config(levels, mode, topology, detach, temperature=temperature))
        output = network(maps_of(levels))
        assert {level: tuple(v.shape) for level, v in output.attributes.items()} == {level: (B, S) for level in levels}
        assert all(torch.isfinite(v).all() for v in output.attributes.values())
        loss_of(output).backward()
        for name, parameter in network.named_parameters():
            # Data-parallel training waits for each parameter that can be trained.
            assert not parameter.requires_grad or parameter.grad is not None, name
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("mode", "reduce", "topology"),
    [
        *(("released", "after", topology) for topology in TOPOLOGIES[:3]),
        *(("regions", "strided", topology) for topology in TOPOLOGIES),
        *(("tokens", "before", topology) for topology in TOPOLOGIES),
    ],
)
@float64()
def test_joint_gradients_are_the_sum_of_the_levels(mode: str, topology: str, reduce: str) -> None:
    settings = config(mode=mode, topology=topology, reduce=reduce)
    network = head(settings)
    maps = maps_of(settings.levels, requires_grad=True)
    wanted = [p for p in network.parameters() if p.requires_grad] + list(maps.values())
    joint_output = network(maps)
    joint = torch.autograd.grad(loss_of(joint_output), wanted)
    summed = [torch.zeros_like(p) for p in wanted]
    for level in settings.levels:
        output = network.forward_level(maps, level)
        assert list(output.attributes) == [level]
        torch.testing.assert_close(output.attributes[level], joint_output.attributes[level], **TOLERANCE)
        parts = torch.autograd.grad(loss_of(output), wanted, materialize_grads=True)
        summed = [total + part for total, part in zip(summed, parts, strict=True)]
    torch.testing.assert_close(summed, list(joint), **TOLERANCE)


@pytest.mark.parametrize(
    ("topology", "level", "runs"),
    [
        ("none", "c3", {"c3"}),
        ("cascade", "c3", {"c3", "c4", "c5"}),
        ("cascade", "c5", {"c5"}),
        ("adjacent", "c3", {"c3", "c4"}),
        ("adjacent", "c5", {"c4", "c5"}),
        ("regions", "c5", {"c4", "c5"}),
    ],
)
@pytest.mark.parametrize("detach", [True, False])
def test_a_level_computes_once_what_it_needs(topology: str, level: str, runs: set[str], detach: bool) -> None:
    network = head(config(topology=topology, detach=detach))
    graphs: dict[str, list[bool]] = {level: [] for level in network.levels}
    for name, module in network.levels.items():
        module.register_forward_hook(lambda m, i, out, name=name: graphs[name].append(out.features.requires_grad))
    assert network.needed_maps(level) == (tuple(sorted(runs)), level if detach else max(runs))
    network.forward_level({name: x for name, x in maps_of(THREE).items() if name in runs}, level)
    assert graphs == {name: [name == level or not detach] if name in runs else [] for name in network.levels}


def test_exchanged_regions_are_a_residual_that_starts_at_zero() -> None:
    maps = maps_of(THREE)
    alone, exchanging = head(config(topology="none")), head(config(topology="regions"))
    loaded = exchanging.load_state_dict(alone.state_dict(), strict=False)
    assert all(name.startswith("refinement.exchange.") for name in loaded.missing_keys)
    for level, vector in alone(maps).attributes.items():
        torch.testing.assert_close(exchanging(maps).attributes[level], vector, rtol=0, atol=0)

    unit = exchanging.refinement.exchange["c4"]
    assert [tuple(unit.gain.shape), float(unit.gain.detach().abs().max())] == [(unit.query.in_features,), 0.0]
    outputs = exchanging.outputs(maps, "c4")
    tokens = outputs["c4"].features.flatten(2).mT
    mined = {source: outputs[source].regions.descriptors for source in ("c3", "c5")}
    keys, values = (
        torch.cat([z @ layers[source].weight.T for source, z in mined.items()], dim=1)
        for layers in (unit.keys, unit.values)
    )
    attention = (tokens @ unit.query.weight.T @ keys.mT / keys.shape[2] ** 0.5).softmax(dim=2)
    torch.nn.init.normal_(unit.gain)
    residual = unit(tokens, mined)
    torch.testing.assert_close(residual, unit.gain * (attention @ values), rtol=1e-4, atol=1e-5)
    refined = exchanging.tokens("c4", outputs)
    torch.testing.assert_close(refined, tokens + residual)


def test_autocast_and_channels_last_change_little_and_regions_stay_float32() -> None:
    network = head(config())
    maps = maps_of(THREE)
    plain = network(maps).attributes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(maps)
    assert output.regions["c5"].assignment.dtype == torch.float32
    loss_of(output).backward()
    network.to(memory_format=torch.channels_last)
    last = network({level: x.contiguous(memory_format=torch.channels_last) for level, x in maps.items()}).attributes
    for level in plain:
        torch.testing.assert_close(output.attributes[level].float(), plain[level], rtol=0.1, atol=0.1)
        torch.testing.assert_close(last[level], plain[level], rtol=1e-4, atol=1e-5)


def test_heads_of_the_baselines() -> None:
    network, maps = build_head(AttributeNetworkConfig(level="c4"), CHANNELS, torch.randn(S, L)), maps_of(("c4",))
    assert isinstance(network, AttributeNetwork) and "word_vectors" in network.state_dict()
    for output in (network(maps), network.forward_level(maps, "c4")):
        torch.testing.assert_close(output.attributes["c4"], network.linear(maps["c4"].mean(dim=(2, 3))))
    with pytest.raises(TypeError, match="closed form"):
        build_head(ESZSLConfig(), CHANNELS, torch.randn(S, L))
