"""Checkpoints of the authors' code: their names and shapes mapped to ours.

In the released code the halvings follow the convolutions, the refinement is a detached cascade, and region mining divides by K. `MgMRN`
computes the same with `regions: released`, `reduce: after`, `topology: cascade`, `detach: true` and `temperature: none`.

| released                                    | ours, below `head.` (l = c3, c4, c5)                     |
|---------------------------------------------|----------------------------------------------------------|
| `backbone.*`                                | `backbone.*` (not below `head.`)                         |
| `s3\\|s4\\|s5.group.weight`, `.smooth_factor` | `levels.l.regions.centres`, `.smoothing`                 |
| `s3\\|s4\\|s5.conv.block.I.block.0`, `.1`     | `levels.l.blocks.I.conv`, `.norm`                        |
| `lateral_conv1`, `2`                        | `refinement.attention.c3.c4_c5`, `.c4.c5`                |
| `….conv`, `.c_attn.0`, `.c_attn.2`          | `….conv`, `.channel_gate.0`, `.channel_gate.2`           |
| `….s_attn.0`                                | `….spatial_gate`                                         |
| `QueryW`, `KeyW`, `ValueW`, `W_o` 1, 2, 3   | `decoders.l.query`, `.key`, `.value`, `.output`          |
| `V_att_final_branch` 1, 2, 3                | `decoders.l.attributes`                                  |

D width, K regions, M attention width, S attributes, L word-vector length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mgmrn.config import (
    BackboneConfig,
    BackboneName,
    DecoderConfig,
    GranularityConfig,
    Level,
    MgMRNConfig,
    RefinementConfig,
    RegionConfig,
)
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
_BLOCKS = {"c3": 2, "c4": 1, "c5": 1}
_LATERALS = {"lateral_conv1": "c3.c4_c5", "lateral_conv2": "c4.c5"}
_GATES = {"conv": "conv", "c_attn.0": "channel_gate.0", "c_attn.2": "channel_gate.2", "s_attn.0": "spatial_gate"}
_LINEARS = {"QueryW": "query", "KeyW": "key", "ValueW": "value", "W_o": "output"}


def load_released(
    state: Mapping[str, Tensor], backbone: BackboneName = "resnet101"
) -> tuple[MgMRNConfig, dict[str, Tensor]]:
    """A config that computes what the released code does, and the weights in the names of `ImageModel`.

    D, K, M, S, L and the channel gate's bottleneck are read off the shapes. The word vectors (`head.word_vectors`) are no part of such a
    checkpoint. Channel gates may be linear maps or 1×1 convolutions, spatial gates may have D channels or one, and the refinement's biases
    may be missing.
    """
    width = state["V_att_final_branch1"].shape[1]
    config = MgMRNConfig(
        backbone=BackboneConfig(name=backbone, weights="none"),
        levels=LEVELS,
        width=width,
        regions=RegionConfig(mode="released", count=state["s3.group.weight"].shape[0]),
        granularity=GranularityConfig(reduce="after", stem="none"),
        refinement=RefinementConfig(
            channel_reduction=width // len(state["lateral_conv1.c_attn.0.weight"]), topology="cascade"
        ),
        decoder=DecoderConfig(attention_width=len(state["KeyW1.weight"]), word_vectors="raw", temperature="none"),
    )
    renamed = dict(_head_names())
    assert all(name in renamed or name.startswith("backbone.") for name in state), "unknown names"
    ours = {renamed.get(name, name): value for name, value in state.items()}
    with torch.device("meta"):
        trunk = build_backbone(config.backbone, LEVELS)
        words = torch.empty(len(state["V_att_final_branch1"]), state["QueryW1.weight"].shape[1])
        wanted = ImageModel(trunk, build_head(config, trunk.channels, words)).state_dict()
    del wanted["head.word_vectors"]
    may_lack = (".bias", ".num_batches_tracked")
    assert all(name in ours or name.endswith(may_lack) for name in wanted), "missing names"
    return config, {
        name: _fit(ours[name], like.shape) if name in ours else torch.zeros(like.shape, dtype=like.dtype)
        for name, like in wanted.items()
    }


def _head_names() -> Iterator[tuple[str, str]]:
    """Released name and ours, for all but the backbone."""
    for number, level in enumerate(LEVELS, start=1):
        stage, ours = f"s{number + 2}", f"head.levels.{level}"
        yield f"{stage}.group.weight", f"{ours}.regions.centres"
        yield f"{stage}.group.smooth_factor", f"{ours}.regions.smoothing"
        for block in range(_BLOCKS[level]):
            yield f"{stage}.conv.block.{block}.block.0.weight", f"{ours}.blocks.{block}.conv.weight"
            for part in ("weight", "bias"):
                yield f"{stage}.conv.block.{block}.block.1.{part}", f"{ours}.blocks.{block}.norm.{part}"
        for part in ("weight", "bias"):
            for theirs, linear in _LINEARS.items():
                yield f"{theirs}{number}.{part}", f"head.decoders.{level}.{linear}.{part}"
        yield f"V_att_final_branch{number}", f"head.decoders.{level}.attributes"
    for lateral, place in _LATERALS.items():
        for theirs, module in _GATES.items():
            for part in ("weight", "bias"):
                yield f"{lateral}.{theirs}.{part}", f"head.refinement.attention.{place}.{module}.{part}"


def _fit(value: Tensor, shape: torch.Size) -> Tensor:
    """A 1×1 convolution's weight as a matrix; a gate of one channel repeated for all D."""
    if value.ndim == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
        return value[:, :, 0, 0]
    if value.ndim == len(shape) and value.ndim in (1, 4) and value.shape[0] == 1 and value.shape[1:] == shape[1:]:
        return value.expand(shape).clone()
    return value
