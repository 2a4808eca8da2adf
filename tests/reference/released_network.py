"""The released network, written out plainly: what METHOD says it computes, in the order in which it is said.

For tests and benchmarks alone. Parameters bear the names of the authors' checkpoints (see `released_checkpoint.py`), so a state dict of this
module is one. B images, C channels, H W grid, N tokens, D width, K regions, S attributes, L word-vector length, M attention width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model

GROUP_NORM_GROUPS = 32
CHANNEL_REDUCTION = 16
STAGES = ("s3", "s4", "s5")
"""Finest first."""


@dataclass(frozen=True)
class Sizes:
    """Of a released network."""

    backbone: str = "resnet101"
    width: int = 2048
    attention_width: int = 1024
    regions: int = 5
    attributes: int = 312
    word_length: int = 300


class Grouping(nn.Module):
    """Region mining as released: q_k(p) = softmax_k(−‖x_p − c_k‖² / β_k), and the mean over k of q_k ⊙ x."""

    def __init__(self, channels: int, regions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(regions, channels, 1, 1) / channels**0.5)
        self.smooth_factor = nn.Parameter(torch.zeros(regions))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        centres = self.weight.square().sum(dim=1)[None]
        distance = x.square().sum(dim=1, keepdim=True) - 2 * F.conv2d(x, self.weight) + centres
        assignment = (-distance / torch.sigmoid(self.smooth_factor)[:, None, None]).softmax(dim=1)
        grouped = assignment[:, :, None] * x[:, None]  # B K C H W
        return grouped.mean(dim=1)


class ConvBlock(nn.Module):
    """Conv3×3 without bias → GroupNorm → ReLU, then a 2× bilinear reduction where one is due."""

    def __init__(self, channels: int, width: int, halves: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(GROUP_NORM_GROUPS, width), nn.ReLU()
        )
        self.halves = halves

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = self.block(x)
        return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=True) if self.halves else x


class Blocks(nn.Module):
    """One block per reduction, at least one."""

    def __init__(self, channels: int, width: int, reductions: int) -> None:
        super().__init__()
        count = max(1, reductions)
        self.block = nn.Sequential(
            *(ConvBlock(channels if i == 0 else width, width, i < reductions) for i in range(count))
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.block(x)


class Stage(nn.Module):
    """One granularity level."""

    def __init__(self, channels: int, width: int, reductions: int, regions: int) -> None:
        super().__init__()
        self.group = Grouping(channels, regions)
        self.conv = Blocks(channels, width, reductions)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.conv(self.group(x))


class Lateral(nn.Module):
    """SCA: u = Conv1×1 x, gated per channel and per pixel and channel."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1)
        hidden = max(1, width // CHANNEL_REDUCTION)
        self.c_attn = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.s_attn = nn.Sequential(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        u = self.conv(x)
        channel = torch.sigmoid(self.c_attn(u.mean(dim=(2, 3))))[:, :, None, None]
        return u * channel * torch.sigmoid(self.s_attn(u))


class ReleasedNetwork(nn.Module):
    """Image to an attribute vector per level."""

    def __init__(self, sizes: Sizes, words: Float[Tensor, "S L"]) -> None:
        super().__init__()
        self.backbone = get_model(sizes.backbone, weights=None)
        channels = [getattr(self.backbone, f"layer{i}")[0].downsample[0].out_channels for i in (2, 3, 4)]
        self.backbone.fc = nn.Identity()
        for stage, stage_channels, reductions in zip(STAGES, channels, (2, 1, 0), strict=True):
            self.add_module(stage, Stage(stage_channels, sizes.width, reductions, sizes.regions))
        self.lateral_conv1 = Lateral(2 * sizes.width, sizes.width)
        self.lateral_conv2 = Lateral(sizes.width, sizes.width)
        for level in (1, 2, 3):
            self.add_module(f"QueryW{level}", nn.Linear(sizes.word_length, sizes.attention_width))
            self.add_module(f"KeyW{level}", nn.Linear(sizes.width, sizes.attention_width))
            self.add_module(f"ValueW{level}", nn.Linear(sizes.width, sizes.attention_width))
            self.add_module(f"W_o{level}", nn.Linear(sizes.attention_width, sizes.width))
            vectors = torch.randn(sizes.attributes, sizes.width) / sizes.width**0.5
            self.register_parameter(f"V_att_final_branch{level}", nn.Parameter(vectors))
        self.words = words  # No buffer: a checkpoint does not hold them.

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B S"]]:
        """Attribute vectors of the three levels, finest first."""
        trunk = self.backbone
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        c3 = trunk.layer2(trunk.layer1(x))
        c4 = trunk.layer3(c3)
        c5 = trunk.layer4(c4)
        f3, f4, f5 = self.s3(c3), self.s4(c4), self.s5(c5)
        refined3 = self.lateral_conv1(torch.cat([f4, f5], dim=1).detach())
        refined4 = self.lateral_conv2(f5.detach())
        tokens = [torch.cat([f3.flatten(2), refined3.flatten(2)], dim=2)]
        tokens.append(torch.cat([f4.flatten(2), refined4.flatten(2)], dim=2))
        tokens.append(f5.flatten(2))
        return [self.decode(level, x.transpose(1, 2)) for level, x in enumerate(tokens, start=1)]

    def decode(self, level: int, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B S"]:
        """v_s = ⟨W_o(A V)_s, e_s⟩ with A = softmax_N(Q Kᵀ), for every image its own queries."""
        words = self.words.expand(len(tokens), -1, -1)
        query = getattr(self, f"QueryW{level}")(words)
        key, value = getattr(self, f"KeyW{level}")(tokens), getattr(self, f"ValueW{level}")(tokens)
        attention = torch.bmm(query, key.transpose(1, 2)).softmax(dim=2)
        found = getattr(self, f"W_o{level}")(torch.bmm(attention, value))
        return (found * getattr(self, f"V_att_final_branch{level}")).sum(dim=2)
