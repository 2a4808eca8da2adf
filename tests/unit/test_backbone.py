"""The pyramid is torchvision's trunk: its maps, frozen and finetuned stages, recomputation, and weights."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from mgmrn.config import LEVELS, BackboneConfig, RefinementConfig
from mgmrn.errors import UserError
from mgmrn.model import backbone as module
from mgmrn.model.backbone import Pyramid, build_backbone
from mgmrn.model.network import ImageModel, build_head
from mgmrn.trunks import TRUNKS
from tests.exported import written
from tests.tiny import small_network

C4 = {"trainable": "stages", "trainable_stages": ("c4",)}
STAGE_C4 = set(range(7, 14))

TAPS = ("features.1", "features.3", "features.5", "features.7")
NODES = {"resnet": [f"layer{i}" for i in range(1, 5)], "mobilenet_v2": [f"features.{i}" for i in (3, 6, 13, 18)]}


def config(name: str = "mobilenet_v2", **settings: Any) -> BackboneConfig:
    return BackboneConfig(name=name, weights=settings.pop("weights", "none"), **settings)


@pytest.mark.parametrize("name", sorted(set(TRUNKS) - {"resnet34", "resnet101"}))
def test_maps_equal_torchvisions_at_the_same_nodes(name: Any) -> None:
    assert TRUNKS["resnet34"] == TRUNKS["resnet18"] and TRUNKS["resnet101"] == TRUNKS["resnet50"]
    torch.manual_seed(0)
    trunk = torchvision.models.get_model(name, weights=None).eval()
    nodes = NODES.get("resnet" if name.startswith("resnet") else name, TAPS)
    extractor = create_feature_extractor(trunk, dict(zip(nodes, LEVELS, strict=True)))
    images = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        expected = extractor(images)
        found = Pyramid(BackboneConfig(name=name), trunk, LEVELS).eval()(images)
    for i, level in enumerate(LEVELS):
        assert found[level].shape == (1, TRUNKS[name].channels[i], 32 // 2 ** (i + 2), 64 // 2 ** (i + 2))
        wanted = expected[level].permute(0, 3, 1, 2) if name == "swin_t" else expected[level]
        torch.testing.assert_close(found[level], wanted, rtol=0, atol=0)


def test_no_deeper_stage_is_built_or_run_than_a_level_needs() -> None:
    assert len(build_backbone(config(), ("c3", "c4")).features) == 14
    pyramid = build_backbone(config(trainable="all"), LEVELS)
    ran: list[str] = []
    for name, child in pyramid.features.named_children():
        child.register_forward_hook(lambda *_, name=name: ran.append(name))
    network = small_network(levels=LEVELS, refinement=RefinementConfig(topology="none"))
    model = ImageModel(pyramid, build_head(network, pyramid.channels, torch.randn(5, 4)))
    assert list(model.forward_level(torch.randn(1, 3, 32, 32), "c3").attributes) == ["c3"]
    assert ran == [str(i) for i in range(7)]
    maps = pyramid(torch.randn(1, 3, 32, 32), ("c3", "c4", "c5"), gradient_to="c4")
    assert [maps[level].requires_grad for level in ("c3", "c4", "c5")] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "stages"), [("mobilenet_v2", ("c4",)), ("resnet18", ("c3", "c4")), ("swin_t", ("c4",))]
)
def test_recomputing_gives_the_same_gradients_and_keeps_less(name: str, stages: tuple[str, ...]) -> None:
    found = []
    settings = config(name, trainable="stages", trainable_stages=stages, recompute=True)
    pyramid = build_backbone(settings, ("c3", "c4")).train()
    for recompute in (False, True):
        pyramid._recompute = recompute
        pyramid.zero_grad()
        kept: list[int] = []
        # Stochastic depth draws in every pass; torch repeats the draws of the first.
        torch.manual_seed(1)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x.numel()), x)[1], lambda x: x):
            maps = pyramid(images)
        kept_in_forward = sum(kept)
        sum(x.square().mean() for x in maps.values()).backward()
        gradients = {key: p.grad for key, p in pyramid.named_parameters() if p.grad is not None}
        found.append((maps | gradients, kept_in_forward))
    (plain, plain_kept), (recomputed, kept_in_forward) = found
    assert recomputed.keys() == plain.keys() and len(plain) > 2
    assert all(torch.equal(value, plain[key]) for key, value in recomputed.items())
    assert kept_in_forward < plain_kept / 2


def test_recomputing_leaves_inference_alone() -> None:
    pyramid = build_backbone(config("resnet18", trainable="all", recompute=True), ("c4",)).eval()
    with torch.no_grad():
        assert not pyramid(torch.randn(1, 3, 32, 32))["c4"].requires_grad


@pytest.mark.parametrize("batch_norm", [None, "frozen", "train"])
def test_only_named_stages_are_trained_with_their_batch_norms(batch_norm: str | None) -> None:
    trained, moved = STAGE_C4 if batch_norm else set(), STAGE_C4 if batch_norm == "train" else set()
    settings = C4 | {"batch_norm": batch_norm} if batch_norm else {}
    pyramid = build_backbone(config(**settings), ("c4", "c5")).train()
    assert {int(name.split(".")[1]) for name, p in pyramid.named_parameters() if p.requires_grad} == trained
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    assert pyramid(torch.randn(2, 3, 32, 32))["c4"].requires_grad == bool(trained)
    changed = (name for name, value in pyramid.state_dict().items() if not torch.equal(value, before[name]))
    assert {int(name.split(".")[1]) for name in changed} == moved
    pyramid.eval()
    assert not any(child.training for child in pyramid.modules())


def test_stochastic_depth_is_off_in_frozen_stages() -> None:
    pyramid = build_backbone(config("convnext_tiny", trainable="stages", trainable_stages=("c5",)), LEVELS).train()
    depths = ((n, m) for n, m in pyramid.named_modules() if isinstance(m, torchvision.ops.StochasticDepth))
    assert {name.split(".")[1]: child.training for name, child in depths} == dict.fromkeys("135", False) | {"7": True}


def test_synchronised_statistics_in_trained_stages_alone_and_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(**C4, batch_norm="sync")
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs GPUs"):
        build_backbone(settings, ("c4",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pyramid = build_backbone(settings, ("c4", "c5"))
    stages = {int(n.split(".")[1]) for n, m in pyramid.named_modules() if isinstance(m, nn.SyncBatchNorm)}
    plain = {int(n.split(".")[1]) for n, m in pyramid.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert stages == STAGE_C4 and plain == set(range(19)) - stages
    assert next(p for n, p in pyramid.named_parameters() if n.startswith("features.8")).requires_grad


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of a MobileNet."""
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2().state_dict()


def test_local_weights_are_loaded_without_classifier_and_counters(state: Any, tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    own = build_backbone(config(weights=str(tmp_path / "old.pth")), ("c4", "c5")).state_dict()
    assert own.keys() == {name for name in state if name.startswith("features.")}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            lambda _: written(partial(torch.save, torchvision.models.resnet18().state_dict())),
            r"do not fit mobilenet_v2: features.* is missing, .*, .* and \d+ more",
        ),
        (
            lambda state: written(partial(torch.save, state | {"features.0.0.weight": torch.zeros(16, 3, 3, 3)})),
            r"features\.0\.0\.weight is \(16, 3, 3, 3\) instead of \(32, 3, 3, 3\)",
        ),
        (lambda _: written(partial(torch.save, {"model": {"weight": torch.zeros(2)}})), "not a state dict of tensors"),
        (lambda _: written(partial(torch.save, {"weight": torch.zeros(1000)}))[:700], "cut short"),
        (lambda _: b"<html>not found</html>", "is a web page"),
    ],
    ids=["foreign", "narrow", "wrapped", "short", "text"],
)
def test_unusable_files_get_one_sentence(content: Any, sentence: str, state: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content(state))
    with pytest.raises(UserError, match=sentence) as caught:
        build_backbone(config(weights=str(path)), ("c5",))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_and_failed_downloads_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"neither a file nor.*IMAGENET1K_V1, IMAGENET1K_V2"):
        build_backbone(config(weights="IMAGENET21K"), ("c5",))
    monkeypatch.setattr(
        torchvision.models.MobileNet_V2_Weights, "get_state_dict", Mock(side_effect=OSError("no route to host"))
    )
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\)"):
        build_backbone(config(weights="DEFAULT"), ("c5",))
