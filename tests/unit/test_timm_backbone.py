"""timm's models as backbones: maps, stages, places of cells, weights, the run of a small model, and what is refused."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from mgmrn.checkpoint import TrainedModel, export_model, load_model
from mgmrn.config import LEVELS, BackboneConfig, BenchmarkConfig, ImageConfig, Level
from mgmrn.data.feature_cache import ensure_cache
from mgmrn.data.images import prepared
from mgmrn.data.splits import load_final
from mgmrn.errors import UserError
from mgmrn.explanation import look
from mgmrn.model import backbone as module
from mgmrn.model import timm_backbone
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import build_model
from mgmrn.prediction import score
from pipeline.config.compose import load_experiment
from pipeline.models.reasons import Subject, check_explainable, explain
from pipeline.tracking.environment import numerics
from tests.exported import ATTRIBUTES, CLASS_ATTRIBUTES, CONFIG, GAMMA, NAMES, SEEN, write_pictures
from tests.tiny import write_benchmark

FAMILIES = {
    "resnet50": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
    "convnext_atto": ((40, 80, 160, 320), (4, 8, 16, 32)),
    "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), (4, 8, 16, 32)),
    "vit_small_patch16_224": ((384,) * 4, (16,) * 4),
    "tf_efficientnet_lite2": ((24, 48, 120, 352), (4, 8, 16, 32)),
}
LIGHT = ("convnext_atto",)
FAMILY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in LIGHT else pytest.mark.heavy) for name in FAMILIES]
)
LITE, VIT = "tf_efficientnet_lite0", "vit_tiny_patch16_224"
FINEST: tuple[Level, ...] = ("c2", "c3")
FINETUNED = {"trainable": "stages", "trainable_stages": ("c4",)}
REAL = "backbones/tf_efficientnet_lite2.pth"


def config(name: str = LITE, **settings: Any) -> BackboneConfig:
    return BackboneConfig(name=f"timm/{name}", weights=settings.pop("weights", "none"), **settings)


@FAMILY
def test_maps_are_timms_and_gradients_end_at_the_finetuned_stage(name: str) -> None:
    pyramid = build_backbone(config(name, **FINETUNED), LEVELS)
    images = torch.randn(2, 3, 64, 96)
    maps = pyramid.eval()(images)
    channels, strides = FAMILIES[name]
    assert tuple(pyramid.channels.values()) == channels
    assert [x.shape for x in maps.values()] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]
    options = timm_backbone.size_options(timm_backbone.describe(f"timm/{name}"))
    own = timm.create_model(name, features_only=True, out_indices=list(pyramid._indices.values()), **options).eval()
    values = [value for key, value in pyramid.state_dict().items()]
    own.load_state_dict(dict(zip(own.state_dict(), values, strict=True)))
    for found, expected in zip(maps.values(), own(images), strict=True):
        expected = expected.permute(0, 3, 1, 2) if expected.shape[1] != found.shape[1] else expected
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    maps = pyramid.train()(images)
    assert [x.requires_grad for x in maps.values()] == [False, False, True, True]
    sum(x.square().mean() for x in maps.values()).backward()
    with_gradient = {key for key, p in pyramid.named_parameters() if p.grad is not None}
    assert with_gradient == {key for key, p in pyramid.named_parameters() if p.requires_grad}
    paths = tuple(f"{path}." for path in pyramid.stages["c4"])
    assert with_gradient == {key for key, _ in pyramid.named_parameters() if key.startswith(paths)} != set()
    modes = {f"{key}.": part.training for key, part in pyramid.trunk.named_modules(prefix="trunk")}
    norms = {f"{key}." for key, part in pyramid.named_modules() if isinstance(part, nn.BatchNorm2d)}
    inside = {key for key in modes if key.startswith(paths)} - {
        below for key in norms for below in modes if below.startswith(key)
    }
    assert {key for key, training in modes.items() if training} == inside
    assert list(pyramid(images, ("c3",))) == ["c3"]
    constant = pyramid(images, ("c4", "c5"), gradient_to="c4")
    assert constant["c4"].requires_grad and not constant["c5"].requires_grad


def test_deeper_blocks_are_pruned_and_all_or_nothing_is_trained() -> None:
    assert len(build_backbone(config(VIT), ("c2", "c3")).trunk.blocks) == 6
    assert not any(p.requires_grad for p in build_backbone(config(VIT), LEVELS).parameters())
    pyramid = build_backbone(config("hrnet_w18_small", trainable="all", batch_norm="train"), ("c2",)).train()
    assert all(child.training for child in pyramid.modules() if isinstance(child, nn.BatchNorm2d))
    assert all(p.requires_grad for p in pyramid.parameters())


@pytest.mark.parametrize("name", [VIT, LITE, "convnext_atto"])
def test_recomputing_gives_the_same_gradients_and_keeps_less(name: str) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        pyramid = build_backbone(config(name, **FINETUNED, recompute=recompute), LEVELS).train()
        kept: list[int] = []
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x.numel()), x)[1], lambda x: x):
            maps = pyramid(images)
        kept_in_forward = sum(kept)
        sum(x.square().mean() for x in maps.values()).backward()
        found.append(({key: p.grad for key, p in pyramid.named_parameters() if p.grad is not None}, kept_in_forward))
    (plain, plain_kept), (recomputed, kept_in_forward) = found
    assert all(torch.equal(value, plain[key]) for key, value in recomputed.items()) and len(plain) > 2
    assert kept_in_forward < plain_kept


def test_synchronised_norms_keep_their_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pyramid = build_backbone(config(**FINETUNED, batch_norm="sync"), ("c4",))
    norms = {key for key, one in pyramid.named_modules() if isinstance(one, nn.SyncBatchNorm)}
    assert norms and {key.split(".")[2] for key in norms} == {"3", "4"}
    assert all(isinstance(pyramid.get_submodule(key), SyncBatchNormAct) for key in norms)


@FAMILY
def test_a_model_is_exported_predicts_and_explains(name: str, tmp_path: Path) -> None:
    model = CONFIG.model.model_copy(update={"backbone": config(name), "levels": FINEST})
    whole = CONFIG.model_copy(update={"model": model})
    torch.manual_seed(0)
    network = build_model(model, torch.randn(len(ATTRIBUTES), 8)).eval()
    trained = TrainedModel(network, whole, NAMES, torch.from_numpy(CLASS_ATTRIBUTES), SEEN, GAMMA, ATTRIBUTES)
    export_model(tmp_path / "model.pt", trained)
    again = load_model(tmp_path / "model.pt")
    paths = write_pictures(tmp_path / "pictures")
    images = torch.stack([prepared(path, whole.benchmark.images) for path in paths])
    np.testing.assert_array_equal(score(again, images).calibrated, score(trained, images).calibrated)
    explained = explain(again, [Subject(path, path.name, None) for path in paths], images)
    head, mgmrn = check_explainable(again)
    views = look(head, mgmrn, again.network.backbone(images), images.shape[-1])
    for level in FINEST:
        # On the one grid of a ViT nothing is halved.
        assert {one.cells.count for one in views[level].attention} == {4 if name.startswith("vit") else 8}
    assert [maps.attention.shape[1:] for maps in explained[0].levels] == [(64, 64)] * 2


@FAMILY
def test_cached_maps_are_those_of_the_backbone(name: str, tmp_path: Path) -> None:
    data = load_final(write_benchmark(tmp_path), BenchmarkConfig(name="TINY"))
    images, settings = data.train.take(np.arange(4)), ImageConfig(size=32, resize="squash")
    options = {"flip": False, "device": torch.device("cpu"), "progress": lambda message: None}
    cache = ensure_cache(tmp_path / "cache", images, settings, config(name), FINEST, **options)
    pictures = torch.stack([prepared(images.path(row), settings) for row in range(4)])
    with torch.inference_mode():
        expected = build_backbone(config(name), FINEST).eval()(pictures)
    for level, found in cache.maps(np.zeros(4, dtype=bool)).items():
        torch.testing.assert_close(found.float(), expected[level], rtol=2e-3, atol=2e-3 * float(expected[level].max()))


def test_pictures_are_those_of_the_weights_unless_set() -> None:
    name = "model.backbone.name=timm/vit_base_patch16_clip_224"
    composed = load_experiment("synthetic", [name])
    images = composed.config.benchmark.images
    assert images.mean == (0.48145466, 0.4578275, 0.40821073) and images.size == 64
    assert composed.provenance["benchmark.images.mean"] == "timm"
    tag = ["model.backbone.name=timm/resnet50", "model.backbone.weights=fb_swsl_ig1b_ft_in1k"]
    assert load_experiment("synthetic", tag).config.benchmark.images.mean == (0.485, 0.456, 0.406)
    assert load_experiment("synthetic", [name, "benchmark.images.mean=[0, 0, 0]"]).config.benchmark.images.mean == (
        0,
        0,
        0,
    )
    assert timm_backbone.picture_settings("timm/tf_efficientnet_lite2", "x.pth")["size"] == 260
    finetuned = [f"model.backbone.{one}" for one in ("trainable=stages", "trainable_stages=[c5]")]
    for shipped, size in (("cub-clip", 224), ("awa2-dinov2", 448)):
        composed = load_experiment(shipped, finetuned)
        backbone, found = composed.config.model.backbone, composed.config.benchmark.images
        assert backbone.weights in timm_backbone.weight_tags(backbone.name)
        assert (found.size, composed.provenance["benchmark.images.std"]) == (size, "timm")


def test_the_version_of_timm_counts_where_it_has_the_backbone() -> None:
    names = ("resnet18", f"timm/{LITE}")
    found = [numerics(load_experiment("cub100-lite2", [f"model.backbone.name={name}"]).config) for name in names]
    assert found[1] == f"{found[0]}, timm {timm.__version__}" and "timm" not in found[0]


def test_weights_of_files_are_loaded_strictly_without_what_is_pruned(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model(LITE).state_dict()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        own = build_backbone(config(weights=str(tmp_path / file)), ("c3",)).state_dict()
        assert own and all(torch.equal(value, state[key.removeprefix("trunk.")]) for key, value in own.items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:900])
    wrong = {"odd": state | {"x": torch.zeros(1)}, "other": timm.create_model("resnet18").state_dict()}
    for file, content in wrong.items():
        torch.save(content, tmp_path / f"{file}.pth")
    for file, sentence in {"odd.pth": "x is unknown", "other.pth": "missing", "cut.safetensors": "damaged"}.items():
        with pytest.raises(UserError, match=sentence):
            build_backbone(config(weights=str(tmp_path / file)), ("c3",))


def test_what_is_refused_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(call: Any, *parts: str) -> None:
        with pytest.raises(ValueError) as caught:
            call()
        assert all(part in str(caught.value) for part in parts), str(caught.value)

    refused(lambda: config("resnet50.a1_in1k"), "set name timm/resnet50 and weights a1_in1k")
    refused(lambda: BackboneConfig(name="resnet5"), "must be timm/NAME or one of resnet18", "did you mean resnet50?")
    refused(lambda: build_backbone(config("resnet5x0"), LEVELS), "timm has no model", "nearest names are timm/resnet50")
    refused(lambda: load_experiment("synthetic", ["model.backbone.name=timm/vitt"]), "timm has no model 'vitt'")
    refused(
        lambda: build_backbone(config("visformer_tiny"), LEVELS), "no level c2: the strides of its maps are 8, 16, 32"
    )
    refused(
        lambda: build_backbone(config("levit_128s", **FINETUNED | {"trainable_stages": ("c3",)}), ("c4",)),
        "no level c3",
    )
    refused(lambda: build_backbone(config("hrnet_w18_small", **FINETUNED), ("c4",)), "cannot be finetuned by stages")
    refused(lambda: build_backbone(config(weights="in22k"), LEVELS), "neither a file nor a tag", "DEFAULT, in1k")
    images = torch.zeros(1, 3, 65, 65)
    refused(lambda: build_backbone(config(VIT), LEVELS)(images), "does not take pictures of 65×65", "patch size (16)")
    refused(lambda: build_backbone(config("resmlp_12_224"), LEVELS)(images), "takes pictures of 224² alone")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=LocalEntryNotFoundError("not here")))
    monkeypatch.setattr(huggingface_hub, "model_info", Mock(side_effect=OSError("no route to host")))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", Mock(side_effect=OSError("many retries")))
    source = "huggingface.co/timm/tf_efficientnet_lite0.in1k"
    refused(
        lambda: build_backbone(config(weights="in1k"), LEVELS), "could not be downloaded (no route to host)", source
    )
    timm_backbone.describe.cache_clear()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Linear(1, 1))
    refused(lambda: build_backbone(config(), LEVELS), "gives no feature maps")
    timm_backbone.describe.cache_clear()


@pytest.mark.real
def test_the_real_weights_of_lite2_fit_and_tell_pictures_apart(data_root: Path) -> None:
    pyramid = build_backbone(config("tf_efficientnet_lite2", weights=str(data_root / REAL)), LEVELS).eval()
    state = torch.load(data_root / REAL, weights_only=True)
    assert all(torch.equal(value, state[key.removeprefix("trunk.")]) for key, value in pyramid.state_dict().items())
    classes = sorted((data_root / "CUB100/CUB_200_2011/images").iterdir())[:8]
    settings = load_experiment("cub100-lite2").config.benchmark.images
    assert (settings.size, settings.mean, settings.std) == (260, (0.5,) * 3, (0.5,) * 3)
    images = torch.stack([prepared(file, settings) for one in classes for file in sorted(one.iterdir())[:6]])
    with torch.inference_mode():
        maps = pyramid(images)
    assert [x.shape[2] for x in maps.values()] == [65, 33, 17, 9]
    pooled = nn.functional.normalize(maps["c5"].mean(dim=(2, 3)) - maps["c5"].mean(dim=(0, 2, 3)))
    labels = torch.arange(len(classes)).repeat_interleave(6)
    nearest = (pooled @ pooled.T - 2 * torch.eye(len(pooled))).argmax(dim=1)
    assert float((labels[nearest] == labels).float().mean()) > 0.5
