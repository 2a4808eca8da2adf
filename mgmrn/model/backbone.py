"""Convolutional pyramid: torchvision trunks tapped at strides 4, 8, 16 and 32.

B images, C channels of a level, H W image, h w grid of a level (`h = H / stride`, rounded as the trunk rounds).

Sources: arXiv 1512.03385 (ResNet), 1801.04381 (MobileNetV2), 2201.03545 (ConvNeXt), 2103.14030 (Swin); torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import WeightsEnum, get_model, get_model_weights

from mgmrn.config import LEVELS, BackboneConfig, BackboneName, Level
from mgmrn.errors import UserError
from mgmrn.tensor_files import load_strictly, read_state_dict
from mgmrn.trunks import TRUNKS

Stage = Literal["stem"] | Level


class Pyramid(nn.Module):
    """A torchvision trunk up to the deepest wanted stage, under torchvision's own parameter names.

    Args:
        trunk: torchvision's model `name`, whose modules are moved here, not copied.
        levels: levels that `forward` returns, finest first.
        trained: finetuned stages; the others stay in evaluation mode and have no gradients.
        batch_norm_trains: whether the batch norms of finetuned stages use and update batch statistics.
        recompute: activation checkpointing of the blocks that have gradients.
    """

    channels: dict[Level, int]

    def __init__(
        self,
        name: BackboneName,
        trunk: nn.Module,
        levels: Sequence[Level],
        *,
        trained: frozenset[Stage] = frozenset(),
        batch_norm_trains: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = {level: TRUNKS[name].channels[LEVELS.index(level)] for level in self.levels}
        self._stages = {stage: TRUNKS[name].stages[stage] for stage in _stages_up_to(self.levels)}
        self._trained = trained
        self._batch_norm_trains = batch_norm_trains
        self._recompute = recompute
        self._channels_last_output = TRUNKS[name].channels_last
        for stage, paths in self._stages.items():
            for path in paths:
                parent, _, child = path.rpartition(".")
                if parent and not hasattr(self, parent):
                    self.add_module(parent, nn.Sequential())
                self.get_submodule(parent).add_module(child, trunk.get_submodule(path).requires_grad_(stage in trained))

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
                for path in self._stages[stage]:
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
        for stage, paths in self._stages.items():
            for path in paths:
                module = self.get_submodule(path)
                module.train(mode and stage in self._trained)
                if not self._batch_norm_trains:
                    for norm in module.modules():
                        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                            norm.eval()
        return self


def build_backbone(config: BackboneConfig, levels: Sequence[Level]) -> Pyramid:
    """The pyramid of a config, with its weights, frozen where the config says so.

    With `batch_norm: sync` and several ranks, batch norms of finetuned stages share their statistics. Raises UserError
    for a finetuned stage behind the deepest level, weights that cannot be read or belong to another network, and
    synchronised batch norm on CPUs, for which torch has none.
    """
    present = _stages_up_to(levels)
    if missing := [stage for stage in config.trainable_stages if stage not in present]:
        message = f"stage {missing[0]} cannot be finetuned: the deepest level of the network is {present[-1]}"
        raise UserError(message, "model.backbone.trainable_stages", "name stages up to the deepest of model.levels")
    trained = frozenset(present if config.trainable == "all" else config.trainable_stages)
    with torch.random.fork_rng(devices=[], enabled=config.trainable == "none"):
        if config.trainable == "none":
            # Runs that share cached maps need the same random trunk.
            torch.manual_seed(0)
        trunk = get_model(config.name, weights=None)
    synchronised = config.batch_norm == "sync" and _world_size() > 1
    if synchronised and not torch.cuda.is_available():
        hint = "use 'frozen' or 'train' on CPUs"
        raise UserError("synchronised batch norm needs GPUs", "model.backbone.batch_norm", hint)
    statistics = config.batch_norm != "frozen"
    pyramid = Pyramid(
        config.name, trunk, levels, trained=trained, batch_norm_trains=statistics, recompute=config.recompute
    )
    if config.weights != "none":
        _load_weights(pyramid, config)
    if synchronised:
        for path in (path for stage in trained for path in TRUNKS[config.name].stages[stage]):
            convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
            pyramid.set_submodule(path, convert(pyramid.get_submodule(path)))
    return pyramid.train()


def _stages_up_to(levels: Sequence[Level]) -> tuple[Stage, ...]:
    deepest = max(LEVELS.index(level) for level in levels)
    return ("stem", *LEVELS[: deepest + 1])


def _load_weights(pyramid: Pyramid, config: BackboneConfig) -> None:
    """Loads torchvision's weights of that name, or a file with a state dict of the trunk."""
    members = get_model_weights(config.name)
    names = dict.fromkeys(["DEFAULT", *members.__members__])
    path = Path(config.weights).expanduser()
    if config.weights in names:
        member = cast(WeightsEnum, members[config.weights])
        where = str(member)
        try:
            state = cast(dict[str, Tensor], member.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            message = f"the weights {member} could not be downloaded ({error})"
            raise UserError(message, "model.backbone.weights", "give the path of a local .pth file instead") from error
    elif path.is_file():
        state, where = read_state_dict(path), config.weights
    else:
        raise UserError(
            f"the backbone's weights '{config.weights}' are neither a file nor one of torchvision's for {config.name}",
            "model.backbone.weights",
            f"give the path of a .pth file, 'none', or one of {', '.join(names)}",
        )
    paths = tuple(f"{path}." for stage in _stages_up_to(pyramid.levels) for path in TRUNKS[config.name].stages[stage])
    # Old files lack these counters; frozen norms do not read them, and torch starts them at zero.
    counters = {name: torch.tensor(0) for name in pyramid.state_dict() if name.endswith(".num_batches_tracked")}
    weights = counters | {name: value for name, value in state.items() if name.startswith(paths)}
    verdict, hint = f"the weights do not fit {config.name}", f"give a torchvision {config.name} state dict"
    load_strictly(pyramid, weights, verdict, where, hint)


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
