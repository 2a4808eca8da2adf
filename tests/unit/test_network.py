from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgmrn.config import (
    AttributeNetworkConfig,
    BackboneConfig,
    ESZSLConfig,
    GranularityConfig,
    LossConfig,
    MgMRNConfig,
    RefinementConfig,
)
from mgmrn.losses import zsl_loss
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, MgMRN, build_head, class_scores, levels_of
from tests.double import TOLERANCE, float64
from tests.tiny import small_network

CHANNELS = {"c2": 6, "c3": 10, "c4": 12, "c5": 20}
SIDES = {"c2": 15, "c3": 8, "c4": 4, "c5": 2}
S, L, U, B = 5, 7, 4, 3


def config(
    levels: tuple[str, ...] = ("c3", "c4", "c5"),
    mode: str = "regions",
    topology: str = "adjacent",
    detach: bool = True,
    temperature: str = "none",
    **settings: Any,
) -> MgMRNConfig:
    refinement = RefinementConfig(topology=topology, detach=detach, channel_reduction=4)
    return small_network(
        levels=levels, regions=mode, refinement=refinement, attention_width=6, temperature=temperature, **settings
    )


def head(settings: MgMRNConfig, words: Tensor | None = None) -> MgMRN:
    torch.manual_seed(0)
    return MgMRN(settings, CHANNELS, torch.randn(S, L) if words is None else words)


def maps_of(levels: tuple[str, ...], requires_grad: bool = False) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {level: (B, CHANNELS[level], SIDES[level], SIDES[level]) for level in levels}
    return {level: torch.randn(shape, generator=g).requires_grad_(requires_grad) for level, shape in shapes.items()}


def loss_of(output: Any, **settings: Any) -> Tensor:
    classes = torch.rand(U, S, generator=torch.Generator().manual_seed(2))
    terms = LossConfig(occupancy=0.1, decorrelation=0.1, **settings)
    return zsl_loss(output, torch.tensor([0, 1, 3]), classes, terms, global_batch=B).total


TEMPERATURES = ("none", "sqrt", "learned")
SUBSETS = [s for n in (1, 2, 3, 4) for s in itertools.combinations(("c2", "c3", "c4", "c5"), n)]


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("topology", ["none", "cascade", "adjacent"])
@pytest.mark.parametrize("mode", ["none", "released", "regions", "tokens"])
def test_every_mode_trains_on_every_choice_of_levels(mode: str, topology: str, detach: bool) -> None:
    for levels, temperature in zip(SUBSETS, itertools.cycle(TEMPERATURES), strict=False):
        network = head(config(levels, mode, topology, detach, temperature))
        output = network(maps_of(levels))
        assert {level: tuple(v.shape) for level, v in output.attributes.items()} == {level: (B, S) for level in levels}
        loss_of(output).backward()
        for name, parameter in network.named_parameters():
            # All of them: data-parallel training waits for each parameter that can be trained.
            assert not parameter.requires_grad or parameter.grad is not None, name
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("reduce", ["before", "strided", "after"])
@pytest.mark.parametrize("topology", ["none", "cascade", "adjacent"])
@pytest.mark.parametrize("mode", ["released", "regions", "tokens"])
@float64()
def test_joint_gradients_are_the_sum_of_the_levels(mode: str, topology: str, reduce: str) -> None:
    settings = config(mode=mode, topology=topology).model_copy(
        update={"granularity": GranularityConfig(group_norm_groups=4, reduce=reduce)}
    )
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
        for total, part in zip(summed, torch.autograd.grad(loss_of(output), wanted, allow_unused=True), strict=True):
            if part is not None:
                total += part
    for a, b in zip(summed, joint, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def watch(network: MgMRN) -> dict[str, list[bool]]:
    """For each level's MgM, whether its output had a graph, call by call."""
    seen: dict[str, list[bool]] = {level: [] for level in network.levels}
    for level, module in network.levels.items():
        module.register_forward_hook(lambda m, i, out, name=level: seen[name].append(out.features.requires_grad))
    return seen


@pytest.mark.parametrize(
    ("topology", "level", "runs"),
    [
        ("none", "c3", {"c3"}),
        ("cascade", "c3", {"c3", "c4", "c5"}),
        ("cascade", "c5", {"c5"}),
        ("adjacent", "c3", {"c3", "c4"}),
        ("adjacent", "c5", {"c4", "c5"}),
    ],
)
@pytest.mark.parametrize("detach", [True, False])
def test_a_level_computes_once_what_it_needs_and_constants_without_graph(
    topology: str, level: str, runs: set[str], detach: bool
) -> None:
    network = head(config(topology=topology, detach=detach))
    seen = watch(network)
    needed = network.needed_maps(level)
    assert set(needed.values) == runs
    assert set(needed.gradient) == ({level} if detach else runs)
    # Maps that are not needed are not even looked at.
    network.forward_level({name: x for name, x in maps_of(("c3", "c4", "c5")).items() if name in runs}, level)
    assert seen == {name: [name == level or not detach] if name in runs else [] for name in network.levels}


def test_regions_change_the_prediction() -> None:
    maps = maps_of(("c4", "c5"))
    outputs = {mode: head(config(("c4", "c5"), mode))(maps).attributes["c5"] for mode in ("none", "regions", "tokens")}
    network = head(config(("c4", "c5"), "regions"))
    without = {level: m.regions.scatter for level, m in network.levels.items()}
    before = network(maps).attributes["c5"]
    for scatter in without.values():
        nn.init.zeros_(scatter.weight)
    assert (network(maps).attributes["c5"] - before).abs().max() > 1e-5
    assert not torch.allclose(outputs["none"], outputs["tokens"])


def test_a_zero_word_vector_is_finite_all_through() -> None:
    words = torch.randn(S, L)
    words[2] = 0
    network = head(config(temperature="learned"), words)
    output = network(maps_of(("c3", "c4", "c5")))
    loss_of(output).backward()
    assert all(torch.isfinite(v).all() for v in output.attributes.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_autocast_mines_regions_in_float32() -> None:
    network = head(config(("c4", "c5")))
    maps = maps_of(("c4", "c5"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(maps)
    assert output.regions["c5"].assignment.dtype == torch.float32
    plain = network(maps)
    for level in plain.attributes:
        torch.testing.assert_close(output.attributes[level].float(), plain.attributes[level], rtol=0.1, atol=0.1)
    loss_of(output).backward()


def test_channels_last_changes_nothing() -> None:
    network = head(config())
    maps = maps_of(("c3", "c4", "c5"))
    plain = network(maps).attributes
    network.to(memory_format=torch.channels_last)
    last = network({level: x.contiguous(memory_format=torch.channels_last) for level, x in maps.items()}).attributes
    for level in plain:
        torch.testing.assert_close(last[level], plain[level], rtol=1e-4, atol=1e-5)


def test_names_in_the_state_dict_are_readable() -> None:
    names = set(head(config()).state_dict())
    for name in (
        "word_vectors",
        "levels.c4.regions.centres",
        "levels.c4.blocks.0.conv.weight",
        "refinement.attention.c4.c5.conv.weight",
        "decoders.c4.query.weight",
    ):
        assert name in names


def test_tokens_are_what_the_decoder_attends_to() -> None:
    network = head(config(mode="tokens"))
    maps = maps_of(("c3", "c4", "c5"))
    tokens = network.tokens(maps, "c4")
    assert tokens.shape == (B, 3 * 4 + 3, 8)
    found = network.decoders["c4"](tokens, network.word_vectors)
    torch.testing.assert_close(found, network(maps).attributes["c4"])


def test_class_scores_are_summed_cosines() -> None:
    attributes = {level: torch.randn(B, S) for level in ("c4", "c5")}
    classes = torch.rand(U, S)
    expected = sum(torch.cosine_similarity(v[:, None], classes[None], dim=2) for v in attributes.values()) * 20
    torch.testing.assert_close(class_scores(attributes, classes, 20.0), expected)


def image_model(settings: MgMRNConfig) -> ImageModel:
    torch.manual_seed(0)
    backbone = build_backbone(settings.backbone, settings.levels)
    return ImageModel(backbone, build_head(settings, backbone.channels, torch.randn(S, L)))


def test_frozen_backbone_gets_no_gradients_and_keeps_its_statistics() -> None:
    model = image_model(config(("c4", "c5"), backbone=BackboneConfig(name="mobilenet_v2", weights="none"))).train()
    buffers = {name: value.clone() for name, value in model.backbone.named_buffers()}
    loss_of(model(torch.randn(B, 3, 64, 64))).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in model.backbone.named_buffers())
    assert all(p.grad is not None for p in model.head.parameters() if p.requires_grad)


@pytest.mark.parametrize("topology", ["none", "cascade", "adjacent"])
@float64()
def test_sequential_with_a_trained_backbone_sums_to_joint(topology: str) -> None:
    backbone = BackboneConfig(name="resnet18", weights="none", trainable="all")
    model = image_model(config(topology=topology, backbone=backbone)).train()
    images = torch.randn(B, 3, 48, 48)
    loss_of(model(images)).backward()
    joint = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for level in model.backbone.levels:
        loss_of(model.forward_level(images, level)).backward()
    for name, parameter in model.named_parameters():
        if name in joint:
            torch.testing.assert_close(parameter.grad, joint[name], **TOLERANCE, msg=name)


def test_a_level_runs_no_deeper_stage_than_it_needs() -> None:
    backbone = BackboneConfig(name="resnet18", weights="none", trainable="all")
    model = image_model(config(topology="none", backbone=backbone))
    ran: list[str] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        model.backbone.get_submodule(stage).register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    model.forward_level(torch.randn(1, 3, 64, 64), "c3")
    assert ran == ["layer1", "layer2"]


def test_build_head_and_levels_of_every_model() -> None:
    words = torch.randn(S, L)
    assert isinstance(build_head(config(), CHANNELS, words), MgMRN)
    baseline = AttributeNetworkConfig(level="c4")
    assert build_head(baseline, CHANNELS, words)(maps_of(("c4",))).attributes["c4"].shape == (B, S)
    assert levels_of(config()) == ("c3", "c4", "c5") and levels_of(baseline) == ("c4",)
    with pytest.raises(TypeError, match="closed form"):
        build_head(ESZSLConfig(), CHANNELS, words)
