"""Pyramids: trunks of torchvision and timm, tapped at four levels.

B images, C channels of a level, H W image, h w grid of a level (`h = H / stride`, rounded as the trunk rounds).

Sources: arXiv 1512.03385 (ResNet), 1801.04381 (MobileNetV2), 2201.03545 (ConvNeXt), 2103.14030 (Swin); torchvision; timm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import WeightsEnum, get_model, get_model_weights

from mgmrn.config import LEVELS, BackboneConfig, BackboneName, Level
from mgmrn.errors import UserError
from mgmrn.model import timm_backbone
from mgmrn.tensor_files import load_strictly, read_state_dict
from mgmrn.trunks import TRUNKS, Stages

Stage = Literal["stem"] | Level
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Pyramid(nn.Module):
    """A torchvision trunk up to the deepest wanted stage, under torchvision's own parameter names.

    The modules of `trunk`, torchvision's model of the config, are moved here, not copied; `forward` returns `levels`, finest
    first. Stages that are not finetuned stay in evaluation mode and have no gradients.
    """

    channels: dict[Level, int]

    def __init__(self, config: BackboneConfig, trunk: nn.Module, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self._trained = _trained_stages(config, levels)
        self._batch_norm_trains = config.batch_norm != "frozen"
        self._recompute = config.recompute
        self.stages = self._take(config.name, trunk)

    def _take(self, name: BackboneName, trunk: nn.Module) -> Stages:
        """Moves what the levels need here, frozen or not, and sets `channels`; the modules of each stage in order."""
        row = TRUNKS[name]
        self.channels = {level: row.channels[LEVELS.index(level)] for level in self.levels}
        self._channels_last_output = row.channels_last
        stages: Stages = {stage: row.stages[stage] for stage in _stages_up_to(self.levels)}
        for stage, paths in stages.items():
            for path in paths:
                parent, _, child = path.rpartition(".")
                if parent and not hasattr(self, parent):
                    self.add_module(parent, nn.Sequential())
                module = trunk.get_submodule(path).requires_grad_(stage in self._trained)
                self.get_submodule(parent).add_module(child, module)
        return stages

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        levels: Sequence[Level] | None = None,
        *,
        gradient_to: Level | None = None,
    ) -> dict[Level, Float[Tensor, "B C h w"]]:
        """Maps of the wanted levels (None: all), finest first.

        No stage behind the deepest of them runs; stages behind `gradient_to` run under `no_grad`.
        """
        wanted = levels or self.levels
        x = images
        maps: dict[Level, Tensor] = {}
        for stage in _stages_up_to(wanted):
            constant = gradient_to is not None and stage != "stem" and stage > gradient_to
            with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
                for path in self.stages[stage]:
                    x = self._run(self.get_submodule(path), stage, x)
            if stage != "stem" and stage in wanted:
                maps[stage] = x.permute(0, 3, 1, 2) if self._channels_last_output else x
        return maps

    def _run(self, module: nn.Module, stage: Stage, x: Tensor) -> Tensor:
        has_gradient = torch.is_grad_enabled() and (x.requires_grad or stage in self._trained)
        # The stem's modules work in place.
        if not (self._recompute and has_gradient) or stage == "stem":
            return cast(Tensor, module(x))
        for block in module.children() if type(module) is nn.Sequential else (module,):
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def train(self, mode: bool = True) -> Pyramid:
        """Frozen stages stay in evaluation mode (batch norm, stochastic depth), and so do frozen batch norms."""
        super().train(mode)
        for stage, paths in self.stages.items():
            for path in paths:
                module = self.get_submodule(path)
                module.train(mode and stage in self._trained)
                if not self._batch_norm_trains:
                    for norm in module.modules():
                        if isinstance(norm, NORMS):
                            norm.eval()
        return self


class TimmPyramid(Pyramid):
    """timm's model under its own parameter names below `trunk`, pruned behind the deepest level.

    The forward pass is one call, so that maps behind `gradient_to` are computed with gradients and cut off. Position embeddings
    and class tokens belong to the stem.
    """

    def _take(self, name: BackboneName, trunk: nn.Module) -> Stages:
        taps = {level: timm_backbone.tap(name, level) for level in self.levels}
        self.channels = {level: tap.channels for level, tap in taps.items()}
        self._indices = {level: tap.place for level, tap in taps.items()}
        self._only_size = timm_backbone.only_size(name)
        trunk.prune_intermediate_layers(list(self._indices.values()), prune_norm=True)  # type: ignore[operator]
        self.trunk = trunk
        stages: Stages = {"stem": ("",)}
        if self._trained and "stem" not in self._trained:
            for level in (level for level in LEVELS if level in self._trained):
                timm_backbone.tap(name, level)
            found, wanted = timm_backbone.stage_modules(name), _stages_up_to(self.levels)
            stages = {stage: paths for stage, paths in found.items() if stage in wanted}
        for stage, paths in stages.items():
            for path in paths:
                trunk.get_submodule(path).requires_grad_(stage in self._trained)
        return {stage: tuple(f"trunk.{path}".rstrip(".") for path in paths) for stage, paths in stages.items()}

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        levels: Sequence[Level] | None = None,
        *,
        gradient_to: Level | None = None,
    ) -> dict[Level, Float[Tensor, "B C h w"]]:
        wanted, side = levels or self.levels, self._only_size
        if side and images.shape[-2:] != (side, side):
            message = f"the backbone takes pictures of {side}² alone, not of {images.shape[-2]}×{images.shape[-1]}"
            raise UserError(message, "benchmark.images.size", f"set it to {side}")
        maps = timm_backbone.maps(self.trunk, images, [self._indices[level] for level in wanted])
        constant = [gradient_to is not None and level > gradient_to for level in wanted]
        return {level: x.detach() if cut else x for level, x, cut in zip(wanted, maps, constant, strict=True)}

    def train(self, mode: bool = True) -> TimmPyramid:
        super().train(mode)
        if self._recompute:
            self.trunk.set_grad_checkpointing(mode)  # type: ignore[operator]
        return self


def stride(name: BackboneName, level: Level) -> int:
    """Pixels between the cells of a level's map. Raises UserError for a level that the trunk lacks."""
    return 4 << LEVELS.index(level) if name in TRUNKS else timm_backbone.tap(name, level).stride


def halvings(name: BackboneName, level: Level, coarsest: Level) -> int:
    """Number of times that a level's grid is halved for that of the coarsest; 0 between levels on one grid."""
    return (stride(name, coarsest) // stride(name, level)).bit_length() - 1


def build_backbone(config: BackboneConfig, levels: Sequence[Level]) -> Pyramid:
    """The pyramid of a config, with its weights, frozen where the config says so.

    With `batch_norm: sync` and several ranks, batch norms of finetuned stages share their statistics. Raises UserError
    for weights that cannot be read or belong to another network, and synchronised batch norm on CPUs, for which torch has none.
    """
    with torch.random.fork_rng(devices=[], enabled=config.trainable == "none"):
        if config.trainable == "none":
            # Runs that share cached maps need the same random trunk.
            torch.manual_seed(0)
        known = config.name in TRUNKS
        trunk = get_model(config.name, weights=None) if known else timm_backbone.build_trunk(config)
    synchronised = config.batch_norm == "sync" and _world_size() > 1
    if synchronised and not torch.cuda.is_available():
        hint = "use 'frozen' or 'train' on CPUs"
        raise UserError("synchronised batch norm needs GPUs", "model.backbone.batch_norm", hint)
    pyramid = (Pyramid if known else TimmPyramid)(config, trunk, levels)
    if config.weights != "none":
        (_load_weights if known else _load_timm_weights)(pyramid, config)
    if synchronised:
        # timm's norms hold an activation, which torch's conversion drops.
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if known else timm_backbone.synchronise
        for path in (path for stage in _trained_stages(config, levels) for path in pyramid.stages.get(stage, ())):
            pyramid.set_submodule(path, convert(pyramid.get_submodule(path)))
    return pyramid.train()


def _stages_up_to(levels: Sequence[Level]) -> tuple[Stage, ...]:
    deepest = max(LEVELS.index(level) for level in levels)
    return ("stem", *LEVELS[: deepest + 1])


def _trained_stages(config: BackboneConfig, levels: Sequence[Level]) -> tuple[Stage, ...]:
    return _stages_up_to(levels) if config.trainable == "all" else config.trainable_stages


def _load_weights(pyramid: Pyramid, config: BackboneConfig) -> None:
    """Loads torchvision's weights of that name, or a file with a state dict of the trunk."""
    members = get_model_weights(config.name)
    names = dict.fromkeys(["DEFAULT", *members.__members__])
    if config.weights in names:
        member = cast(WeightsEnum, members[config.weights])
        where = str(member)
        try:
            state = cast(dict[str, Tensor], member.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            message = f"the weights {member} could not be downloaded ({error})"
            raise UserError(message, "model.backbone.weights", "give the path of a local .pth file instead") from error
    else:
        state, where = _read_weights(config, "one of torchvision's", names), config.weights
    paths = tuple(f"{path}." for stage in pyramid.stages.values() for path in stage)
    weights = _counters(pyramid) | {name: value for name, value in state.items() if name.startswith(paths)}
    verdict, hint = f"the weights do not fit {config.name}", f"give a torchvision {config.name} state dict"
    load_strictly(pyramid, weights, verdict, where, hint)


def _load_timm_weights(pyramid: Pyramid, config: BackboneConfig) -> None:
    """Loads a file with timm's state dict, less classifier and pruned blocks; the weights of a tag are there already."""
    tags = timm_backbone.weight_tags(config.name)
    if config.weights in tags:
        return
    own, whole = pyramid.state_dict(), timm_backbone.describe(config.name).state_dict()
    state = {
        f"trunk.{name}": value
        for name, value in _read_weights(config, "a tag of timm's", tags).items()
        if name not in whole or f"trunk.{name}" in own
    }
    verdict, hint = f"the weights do not fit {config.name}", "give a state dict of timm's model of that name"
    load_strictly(pyramid, _counters(pyramid) | state, verdict, config.weights, hint)


def _read_weights(config: BackboneConfig, name: str, known: Iterable[str]) -> dict[str, Tensor]:
    path = Path(config.weights).expanduser()
    if not path.is_file():
        message = f"the backbone's weights '{config.weights}' are neither a file nor {name} for {config.name}"
        hint = f"give the path of a .pth or .safetensors file, 'none', or one of {', '.join(known)}"
        raise UserError(message, "model.backbone.weights", hint)
    return read_state_dict(path)


def _counters(pyramid: Pyramid) -> dict[str, Tensor]:
    """Counters of batch norms at zero, where torch starts them: old files lack them, and frozen norms do not read them."""
    return {name: torch.tensor(0) for name in pyramid.state_dict() if name.endswith(".num_batches_tracked")}


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
