from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mgmrn.config import LEVELS, BackboneConfig
from mgmrn.errors import UserError
from mgmrn.model import backbone as module
from mgmrn.model.backbone import build_backbone


def config(name: str = "mobilenet_v2", **settings: Any) -> BackboneConfig:
    return BackboneConfig(name=name, weights=settings.pop("weights", "none"), **settings)


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


def calls(pyramid: nn.Module) -> list[str]:
    """Names of the stages' modules, as they are called."""
    seen: list[str] = []
    for name, child in pyramid.named_modules():
        if name.count(".") == 1 and name.startswith("features."):
            child.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


def test_no_deeper_stage_is_built_or_run_than_wanted() -> None:
    assert len(build_backbone(config(), ("c3", "c4")).features) == 14
    pyramid = build_backbone(config(), LEVELS)
    seen = calls(pyramid)
    maps = pyramid(torch.randn(1, 3, 32, 32), ("c3",))
    assert list(maps) == ["c3"] and seen == [f"features.{i}" for i in range(7)]


def test_stages_behind_the_gradient_run_without_graph() -> None:
    pyramid = build_backbone(config(trainable="all"), LEVELS)
    maps = pyramid(torch.randn(1, 3, 32, 32), ("c3", "c4", "c5"), gradient_to="c4")
    assert [maps[level].requires_grad for level in ("c3", "c4", "c5")] == [True, True, False]


def test_frozen_backbone_has_no_gradients_and_no_statistics_in_training() -> None:
    pyramid = build_backbone(config(), ("c4",)).train()
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    maps = pyramid(torch.randn(2, 3, 32, 32))
    assert not maps["c4"].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in pyramid.state_dict().items())


def test_only_named_stages_are_trained() -> None:
    pyramid = build_backbone(config(trainable="stages", trainable_stages=("c4",)), ("c4", "c5"))
    trained = {int(name.split(".")[1]) for name, p in pyramid.named_parameters() if p.requires_grad}
    assert trained == set(range(7, 14))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t"])
@pytest.mark.parametrize("stages", [("c4",), ("c3", "c4")])
def test_recomputing_gives_the_same_gradients_and_keeps_less(name: str, stages: tuple[str, ...]) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        settings = config(name, trainable="stages", trainable_stages=stages, recompute=recompute)
        pyramid = build_backbone(settings, ("c3", "c4")).train()
        kept: list[int] = []
        # Stochastic depth draws anew in every pass; torch gives the second run the first one's draws.
        torch.manual_seed(1)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x.numel()), x)[1], lambda x: x):
            maps = pyramid(images)
        kept_in_forward = sum(kept)
        sum(x.square().mean() for x in maps.values()).backward()
        gradients = {key: p.grad for key, p in pyramid.named_parameters() if p.grad is not None}
        found.append((maps, gradients, kept_in_forward))
    (plain_maps, plain, plain_kept), (maps, gradients, kept_in_forward) = found
    assert gradients.keys() == plain.keys() != set()
    for level in maps:
        assert torch.equal(maps[level], plain_maps[level])
    for key, gradient in gradients.items():
        assert torch.equal(gradient, plain[key]), key
    assert kept_in_forward < plain_kept / 2


def test_recomputing_changes_nothing_where_nothing_is_trained() -> None:
    pyramid = build_backbone(config("resnet18", trainable="all", recompute=True), ("c4",)).eval()
    with torch.no_grad():
        assert not pyramid(torch.randn(1, 3, 32, 32))["c4"].requires_grad


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"trainable": "all", "batch_norm": "train"}, "count each batch twice"), ({}, "saves nothing in a frozen")],
)
def test_recomputing_is_refused_where_it_would_lie_or_do_nothing(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(recompute=True, **settings)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_norm_of_trained_stages(batch_norm: str) -> None:
    settings = {"trainable": "stages", "trainable_stages": ("c4",), "batch_norm": batch_norm}
    pyramid = build_backbone(config(**settings), ("c4", "c5"))
    means = {n: b.clone() for n, b in pyramid.named_buffers() if n.endswith("running_mean")}
    pyramid(torch.randn(2, 3, 32, 32))
    moved = {int(n.split(".")[1]) for n, b in pyramid.named_buffers() if n in means and not torch.equal(b, means[n])}
    assert moved == (set(range(7, 14)) if batch_norm == "train" else set())
    pyramid.eval()
    assert not any(child.training for child in pyramid.modules())


def test_stochastic_depth_is_off_in_frozen_stages() -> None:
    pyramid = build_backbone(config("convnext_tiny", trainable="stages", trainable_stages=("c5",)), LEVELS).train()
    modes = {
        name.split(".")[1]: child.training
        for name, child in pyramid.named_modules()
        if isinstance(child, torchvision.ops.StochasticDepth)
    }
    assert modes == {"1": False, "3": False, "5": False, "7": True}


def test_synchronised_statistics_are_refused_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs GPUs"):
        build_backbone(config(trainable="all", batch_norm="sync"), ("c4",))


def test_synchronised_statistics_in_trained_stages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = {"trainable": "stages", "trainable_stages": ("c4",), "batch_norm": "sync"}
    pyramid = build_backbone(config(**settings), ("c4", "c5"))
    stages = {int(n.split(".")[1]) for n, m in pyramid.named_modules() if isinstance(m, nn.SyncBatchNorm)}
    plain = {int(n.split(".")[1]) for n, m in pyramid.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert stages == set(range(7, 14)) and plain == set(range(19)) - stages
    assert next(p for n, p in pyramid.named_parameters() if n.startswith("features.8")).requires_grad


def test_a_finetuned_stage_behind_the_network_is_refused() -> None:
    with pytest.raises(UserError, match="stage c5 cannot be finetuned: the deepest level of the network is c4"):
        build_backbone(config(trainable="stages", trainable_stages=("c5",)), ("c3", "c4"))


def test_local_weights_are_loaded_without_the_classifier(mobilenet_file: Path) -> None:
    state = torch.load(mobilenet_file, weights_only=True)
    pyramid = build_backbone(config(weights=str(mobilenet_file)), ("c4", "c5"))
    own = pyramid.state_dict()
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())
    assert set(own) == {name for name in state if name.startswith("features.")}


def test_files_without_counters_are_accepted(mobilenet_file: Path, tmp_path: Path) -> None:
    state = torch.load(mobilenet_file, weights_only=True)
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    build_backbone(config(weights=str(tmp_path / "old.pth")), ("c5",))


def foreign(path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), path)


def wrapped(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, path)


def code(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def short(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, buffer)
    path.write_bytes(buffer.getvalue()[:700])


def text(path: Path) -> None:
    path.write_text("<html>not found</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (foreign, r"do not fit mobilenet_v2: features.* is missing, .*, .* and \d+ more"),
        (wrapped, "not a state dict of tensors"),
        (code, r"asks for torch\.nn\.modules\.linear\.Linear, which is neither a tensor nor a plain value"),
        (short, "cut short"),
        (text, "cut short"),
        (empty, "cut short"),
    ],
)
def test_unusable_files_get_one_sentence(make: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make(path)
    with pytest.raises(UserError, match=sentence) as caught:
        build_backbone(config(weights=str(path)), ("c5",))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_shape_mismatch_is_named(mobilenet_file: Path, tmp_path: Path) -> None:
    state = torch.load(mobilenet_file, weights_only=True)
    state["features.0.0.weight"] = torch.zeros(16, 3, 3, 3)
    torch.save(state, tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"features\.0\.0\.weight is \(16, 3, 3, 3\) instead of \(32, 3, 3, 3\)"):
        build_backbone(config(weights=str(tmp_path / "narrow.pth")), ("c5",))


def test_a_name_that_is_no_file_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"neither a file nor.*IMAGENET1K_V1, IMAGENET1K_V2"):
        build_backbone(config(weights="IMAGENET21K"), ("c5",))


def test_a_failed_download_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.MobileNet_V2_Weights, "get_state_dict", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\)"):
        build_backbone(config(weights="DEFAULT"), ("c5",))


@pytest.mark.real
def test_the_bundles_backbone_loads(data_root: Path) -> None:
    build_backbone(config(weights=str(data_root / "backbones" / "mobilenet_v2_imagenet.pth")), ("c4", "c5"))
