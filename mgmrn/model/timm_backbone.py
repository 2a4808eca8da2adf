"""timm's models as trunks: `timm/NAME` for every model with feature maps, convolutional or not.

A level is the last tap of its stride (c2 … c5: 4, 8, 16, 32). Where all taps share one grid (ViT, DINOv2, CLIP, mixers), the
levels lie evenly among the blocks: behind the first quarter, a half, three quarters, and all. Maps are as with timm's
`features_only`: before the final norm.

Not supported: levels of strides that a model lacks (PiT has 7, 14 and 28; LeViT 16 and 32), and pictures of another size for
models with one size (mixers; ViT and Swin take all that are multiples of their patches).

Source: timm, `feature_info` and `forward_intermediates`, on which `features_only` builds.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mgmrn.config import LEVELS, BackboneConfig, Level
from mgmrn.errors import UserError
from mgmrn.trunks import TIMM, Stages

REPLY_S = 10.0
"""Seconds in which the hub must reply."""


class Tap(NamedTuple):
    """A level of a trunk; `place` is its number in timm's `feature_info`."""

    place: int
    module: str
    channels: int
    stride: int


@cache
def describe(name: str) -> nn.Module:
    """The whole model `timm/NAME` without values (device `meta`). Raises UserError for a model that cannot be a backbone."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{name} needs timm ({error})", "model.backbone.name", "pip install timm") from error
    short = name.removeprefix(TIMM)
    if short not in (known := timm.list_models()):
        close = [f"{TIMM}{one}" for one in difflib.get_close_matches(short, known, n=3)]
        hint = f"the nearest names are {', '.join(close)}" if close else "timm.list_models() has all names"
        raise UserError(f"timm has no model '{short}'", "model.backbone.name", hint)
    # Whether a description is made or remembered, later random numbers are the same.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: nn.Module = timm.create_model(short)
        if options := size_options(model):
            model = timm.create_model(short, **options)
    if not (getattr(model, "feature_info", None) and hasattr(model, "forward_intermediates")):
        hint = "name a model that timm.create_model(…, features_only=True) takes"
        raise UserError(f"{name} gives no feature maps", "model.backbone.name", hint)
    return model.eval()


def size_options(model: nn.Module) -> dict[str, bool]:
    """timm's option by which a model takes pictures of any size, if it has one."""
    option = "dynamic_img_size"
    makers = [vars(one)["__init__"] for one in type(model).__mro__ if "__init__" in vars(one)]
    return {option: True} if any(option in signature(maker).parameters for maker in makers) else {}


def taps(name: str) -> dict[Level, Tap]:
    """Levels of `timm/NAME`, finest first."""
    found = [Tap(i, one["module"], one["num_chs"], one["reduction"]) for i, one in enumerate(_info(name))]
    if len({tap.stride for tap in found}) == 1 and len(found) >= len(LEVELS):
        return {level: found[len(found) * (i + 1) // len(LEVELS) - 1] for i, level in enumerate(LEVELS)}
    last = {tap.stride: tap for tap in found}
    return {level: last[4 << i] for i, level in enumerate(LEVELS) if 4 << i in last}


def tap(name: str, level: Level) -> Tap:
    """A level of `timm/NAME`. Raises UserError when the model has no such level."""
    if level not in (found := taps(name)):
        strides = ", ".join(str(one["reduction"]) for one in _info(name))
        hint = f"it has {', '.join(found)}" if found else "name another model"
        raise UserError(f"{name} has no level {level}: the strides of its maps are {strides}", "model", hint)
    return found[level]


def stage_modules(name: str) -> Stages:
    """Modules of each stage in order; none is cut by a tap but the root, first in the stem; none lies behind the deepest level.

    The finest level's stage begins behind the last tap of a smaller stride, else with the list that holds its own tap. Raises
    UserError where timm's taps are no modules (HRNet, MViT, Twins).
    """
    levels = taps(name)
    parents = [one["module"].split(".")[:-1] for one in _info(name)]
    cut = {".".join(names[:depth]) for names in parents for depth in range(len(names) + 1)}
    paths = list(_uncut(describe(name), "", cut))
    if any(one.module not in paths for one in levels.values()):
        message = f"{name} cannot be finetuned by stages: timm names no modules for its maps"
        raise UserError(message, "model.backbone.trainable", "set it to 'all' or 'none'")
    finest = next(iter(levels.values()))
    siblings = f"{finest.module.rpartition('.')[0]}." if "." in finest.module else finest.module
    before = [one["module"] for one in _info(name) if one["reduction"] < finest.stride and one["module"] in paths]
    start = paths.index(before[-1]) + 1 if before else [path.startswith(siblings) for path in paths].index(True)
    stages: dict[str, tuple[str, ...]] = {"stem": ("", *paths[:start])}
    for level, one in levels.items():
        end = paths.index(one.module) + 1
        stages[level], start = tuple(paths[start:end]), end
    return stages


def first_centre(name: str, level: Level, size: int) -> float:
    """Centre in pixels of the first cell of a level on a picture of size×size.

    Follows strided convolutions and pools by their padding; in ports from TensorFlow it depends on the size. Any other
    reduction is taken for a merging of patches, with the centre in their middle.
    """
    goal, trunk = tap(name, level), describe(name)
    passed: list[tuple[int, int, int, float]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stride, kernel, padding = (_single(getattr(module, key)) for key in ("stride", "kernel_size", "padding"))
        before, after = inputs[0].shape[-1], output.shape[-1]
        # Ports from TensorFlow pad in their forward pass.
        padding = padding or max((after - 1) * stride + kernel - before, 0) // 2
        passed.append((before, after, stride, (kernel - 1) / 2 - padding))

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    strided = [module for module in trunk.modules() if isinstance(module, kinds) and _single(module.stride) > 1]
    hooks = [module.register_forward_hook(record) for module in strided]
    try:
        (found,) = maps(trunk, torch.zeros(1, 3, size, size, device="meta"), [goal.place])
    finally:
        for hook in hooks:
            hook.remove()
    side, centre, step = size, 0.5, 1
    while step < goal.stride:
        # The last of several branches: reduced keys and values of an attention come before.
        choices = [one[1:] for one in passed if one[0] == side and found.shape[-1] <= one[1] < side]
        rest = goal.stride // step
        side, stride, offset = choices[-1] if choices else (found.shape[-1], rest, (rest - 1) / 2)
        centre, step = centre + step * offset, step * stride
    return centre


def maps(trunk: nn.Module, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Maps `B C h w` at some taps, ascending; nothing behind the last one runs. Raises UserError for a size that does not fit."""
    try:
        forward = trunk.forward_intermediates
        return list(forward(images, indices=list(indices), stop_early=True, intermediates_only=True))  # type: ignore[operator]
    except AssertionError as error:
        message = f"the backbone does not take pictures of {images.shape[-2]}×{images.shape[-1]}: {error}"
        raise UserError(message, "benchmark.images.size", "set a size that fits") from error


def only_size(name: str) -> int | None:
    """Side of the pictures that a model of one size takes; None for the others."""
    config = cast(Mapping[str, Any], describe(name).pretrained_cfg)
    fixed = config.get("fixed_input_size") and not size_options(describe(name))
    return int(config["input_size"][-1]) if fixed else None


def weight_tags(name: str) -> dict[str, Mapping[str, Any]]:
    """Where timm has weights of a model and how they were trained, by tag; first `DEFAULT`."""
    import timm.models

    describe(name)
    short = name.removeprefix(TIMM)
    found = timm.models.get_arch_pretrained_cfgs(short).items()
    tags = {one.partition(".")[2]: config.to_dict() for one, config in found if config.has_weights}
    return {"DEFAULT": timm.models.get_pretrained_cfg(short).to_dict(), **tags}


def picture_settings(name: str, weights: str) -> dict[str, Any]:
    """Size, mean and standard deviation of a tag's pictures, else the model's own, as fields of `ImageConfig`."""
    from timm.data import resolve_data_config

    tags = weight_tags(name)
    found = resolve_data_config(pretrained_cfg=tags.get(weights, tags["DEFAULT"]))
    return {"size": found["input_size"][-1], "mean": list(found["mean"]), "std": list(found["std"])}


def build_trunk(config: BackboneConfig) -> nn.Module:
    """timm's model of a config, with the weights of the tag that it names; those of a file are not read here.

    Raises UserError for weights that cannot be downloaded.
    """
    import timm

    options = {"num_classes": 0, **size_options(describe(config.name))}
    tags, short = weight_tags(config.name), config.name.removeprefix(TIMM)
    if config.weights not in tags:
        return timm.create_model(short, **options)
    chosen = tags[config.weights]
    try:
        if "hf_hub_id" in chosen:
            _reach_hub(chosen["hf_hub_id"])
        return timm.create_model(short, pretrained=True, pretrained_cfg=dict(chosen), **options)
    # timm, the hub and the network raise many kinds of exception.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"the weights {config.weights} of {config.name} could not be downloaded ({reason})"
        source = f" from huggingface.co/{chosen['hf_hub_id']}" if "hf_hub_id" in chosen else ""
        hint = f"give the path of a local .safetensors or .pth file{source}, or 'none'"
        raise UserError(message, "model.backbone.weights", hint) from error


def _reach_hub(repository: str) -> None:
    """One request about weights that are not on this machine: their download is tried for a minute where there is no network."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(repository, local_files_only=True)
    except LocalEntryNotFoundError:
        model_info(repository, timeout=REPLY_S)


def synchronise(module: nn.Module) -> nn.Module:
    """`SyncBatchNorm.convert_sync_batchnorm` for timm's batch norms, which hold an activation."""
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(module)


def _info(name: str) -> Sequence[Mapping[str, Any]]:
    return cast(Sequence[Mapping[str, Any]], describe(name).feature_info)


def _uncut(module: nn.Module, path: str, cut: Collection[str]) -> Iterator[str]:
    if path not in cut:
        yield path
        return
    for child, below in module.named_children():
        yield from _uncut(below, f"{path}.{child}" if path else child, cut)


def _single(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[-1]
