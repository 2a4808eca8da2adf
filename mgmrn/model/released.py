"""Checkpoints of the authors' code: their names and shapes mapped to ours, strictly.

There the halvings follow the convolutions, the refinement is a detached cascade, and region mining divides by K.
`MgMRN` computes the same with `regions: released`, `reduce: after`, `topology: cascade`, `detach: true` and
`temperature: none`.

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

K regions, S attributes, L word-vector length, M attention width, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mgmrn.config import (
    BackboneConfig,
    DecoderConfig,
    GranularityConfig,
    Level,
    MgMRNConfig,
    RefinementConfig,
    RegionConfig,
)
from mgmrn.errors import UserError
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head
from mgmrn.tensor_files import misfits, read_state_dict, refuse

_LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
_BLOCKS = {"c3": 2, "c4": 1, "c5": 1}
_LATERALS = {"lateral_conv1": "c3.c4_c5", "lateral_conv2": "c4.c5"}


def load_released(state: Mapping[str, Tensor], where: str = "") -> tuple[MgMRNConfig, dict[str, Tensor]]:
    """A config that computes what the released code does, and the weights in the names of `ImageModel`.

    D, K, M, S, L and the channel gate's bottleneck are read off the shapes. The word vectors (`head.word_vectors`) are
    no part of such a checkpoint.

    Args:
        state: the released state dict. Channel gates may be linear maps or 1×1 convolutions, spatial gates may have D
            channels or one, and the refinement's biases may be missing.
        where: file, for the error.

    Raises:
        UserError: naming the first of the parameters that are missing, unknown or of a shape that does not fit.
    """
    names, optional = _head_names()
    trunk = {f"backbone.{name}" for name in _trunk_names()}
    counters = {name for name in trunk if name.endswith(".num_batches_tracked")}
    any_shape = dict.fromkeys(sorted(names.keys() | trunk))
    _refuse(misfits(state, any_shape, optional=optional | counters), where)
    config = _config_of(state, where)
    expected = _expected_shapes(config, state["QueryW1.weight"].shape[1], state["V_att_final_branch1"].shape[0])
    ours = {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
    ours |= {name: state[name] for name in trunk if name in state}
    weights = {
        name: _fit(ours[name], shape) if name in ours else torch.zeros(shape, dtype=_dtype(name))
        for name, shape in expected.items()
    }
    theirs = {name: name for name in expected} | {ours: theirs for theirs, ours in names.items()}
    _refuse(
        misfits(
            {theirs[name]: value for name, value in weights.items()},
            {theirs[name]: shape for name, shape in expected.items()},
        ),
        where,
    )
    return config, weights


def read_released(path: Path, word_vectors: Float[Tensor, "S L"]) -> tuple[MgMRNConfig, ImageModel]:
    """The network of a released checkpoint, in evaluation mode.

    Args:
        path: a state dict, saved with `torch.save`; it is read without running code.
        word_vectors: those that it was trained with.

    Raises:
        UserError: when the file is unreadable, is no such checkpoint, or was trained on another number of attributes.
    """
    state = read_state_dict(path)
    config, weights = load_released(state, str(path))
    shape = (weights["head.decoders.c3.attributes"].shape[0], weights["head.decoders.c3.query.weight"].shape[1])
    if word_vectors.shape != shape:
        raise UserError(
            f"the checkpoint was trained with {shape[0]} word vectors of length {shape[1]}, "
            f"the benchmark has {word_vectors.shape[0]} of length {word_vectors.shape[1]}",
            str(path),
            "use the benchmark that it was trained on",
        )
    backbone = build_backbone(config.backbone, config.levels)
    model = ImageModel(backbone, build_head(config, backbone.channels, word_vectors))
    model.load_state_dict({**weights, "head.word_vectors": model.head.word_vectors})
    return config, model.eval()


def _head_names() -> tuple[dict[str, str], set[str]]:
    """Released name → ours, for all but the backbone; and those that a checkpoint may lack."""
    names: dict[str, str] = {}
    for number, level in enumerate(_LEVELS, start=1):
        stage, ours = f"s{number + 2}", f"head.levels.{level}"
        names[f"{stage}.group.weight"] = f"{ours}.regions.centres"
        names[f"{stage}.group.smooth_factor"] = f"{ours}.regions.smoothing"
        for block in range(_BLOCKS[level]):
            names[f"{stage}.conv.block.{block}.block.0.weight"] = f"{ours}.blocks.{block}.conv.weight"
            for part in ("weight", "bias"):
                names[f"{stage}.conv.block.{block}.block.1.{part}"] = f"{ours}.blocks.{block}.norm.{part}"
        for theirs, linear in (("QueryW", "query"), ("KeyW", "key"), ("ValueW", "value"), ("W_o", "output")):
            for part in ("weight", "bias"):
                names[f"{theirs}{number}.{part}"] = f"head.decoders.{level}.{linear}.{part}"
        names[f"V_att_final_branch{number}"] = f"head.decoders.{level}.attributes"
    optional: set[str] = set()
    gates = (
        ("conv", "conv"),
        ("c_attn.0", "channel_gate.0"),
        ("c_attn.2", "channel_gate.2"),
        ("s_attn.0", "spatial_gate"),
    )
    for lateral, place in _LATERALS.items():
        for theirs, module in gates:
            for part in ("weight", "bias"):
                names[f"{lateral}.{theirs}.{part}"] = f"head.refinement.attention.{place}.{module}.{part}"
            optional.add(f"{lateral}.{theirs}.bias")
    return names, optional


def _trunk_names() -> list[str]:
    with torch.device("meta"):
        return list(build_backbone(BackboneConfig(name="resnet101", weights="none"), _LEVELS).state_dict())


def _config_of(state: Mapping[str, Tensor], where: str) -> MgMRNConfig:
    def size(name: str, axis: int) -> int:
        shape = state[name].shape
        if axis >= len(shape):
            _refuse([f"{name} is {tuple(shape)}, which has too few axes"], where)
        return shape[axis]

    width = size("V_att_final_branch1", 1)
    hidden = size("lateral_conv1.c_attn.0.weight", 0)
    if width % hidden:
        _refuse([f"the channel gate's bottleneck of {hidden} does not divide the width {width}"], where)
    try:
        return MgMRNConfig(
            backbone=BackboneConfig(name="resnet101", weights="none"),
            levels=_LEVELS,
            width=width,
            regions=RegionConfig(mode="released", count=size("s3.group.weight", 0)),
            granularity=GranularityConfig(reduce="after", stem="none"),
            refinement=RefinementConfig(topology="cascade", detach=True, channel_reduction=width // hidden),
            decoder=DecoderConfig(attention_width=size("KeyW1.weight", 0), word_vectors="raw", temperature="none"),
        )
    except ValueError as error:
        raise UserError(f"the checkpoint describes no valid network: {error}", where) from error


def _expected_shapes(config: MgMRNConfig, length: int, attributes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, config.levels)
        model = ImageModel(backbone, build_head(config, backbone.channels, torch.empty(attributes, length)))
    return {name: value.shape for name, value in model.state_dict().items() if name != "head.word_vectors"}


def _fit(value: Tensor, shape: torch.Size) -> Tensor:
    """A 1×1 convolution's weight as a matrix; a gate of one channel repeated for all D."""
    if value.ndim == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
        return value[:, :, 0, 0]
    if value.ndim == len(shape) and value.ndim in (1, 4) and value.shape[0] == 1 and value.shape[1:] == shape[1:]:
        return value.expand(shape).clone()
    return value


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


def _refuse(wrong: list[str], where: str) -> None:
    refuse(
        wrong,
        "the checkpoint is not one of the released code",
        where,
        "give the state dict of a three-level network on ResNet-101",
    )
