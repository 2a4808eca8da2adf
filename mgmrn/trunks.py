"""torchvision's trunks as pyramids, a row each. Other names are timm's."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

TIMM = "timm/"
"""Start of the name of a backbone from timm."""
Stages = Mapping[str, tuple[str, ...]]


class Trunk(NamedTuple):
    """Modules of each stage in order, the last of which has the output that is tapped, and C of c2, c3, c4 and c5."""

    stages: Stages
    channels: tuple[int, int, int, int]
    patches: bool = False  # Cut from the picture; otherwise convolutions are centred on every 2nd, 4th … pixel.
    channels_last: bool = False


def _stages(*modules: tuple[str, ...]) -> Stages:
    return dict(zip(("stem", "c2", "c3", "c4", "c5"), modules, strict=True))


def _features(*ends: int) -> Stages:
    """Stages of children of `features`, given the number of the first child behind each."""
    return _stages(*(tuple(f"features.{i}" for i in range(*span)) for span in pairwise((0, *ends))))


_RESNET = _stages(("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
TRUNKS: Mapping[str, Trunk] = {
    **dict.fromkeys(("resnet18", "resnet34"), Trunk(_RESNET, (64, 128, 256, 512))),
    **dict.fromkeys(("resnet50", "resnet101"), Trunk(_RESNET, (256, 512, 1024, 2048))),
    "mobilenet_v2": Trunk(_features(2, 4, 7, 14, 19), (24, 32, 96, 1280)),
    "convnext_tiny": Trunk(_features(1, 2, 4, 6, 8), (96, 192, 384, 768), patches=True),
    "swin_t": Trunk(_features(1, 2, 4, 6, 8), (96, 192, 384, 768), patches=True, channels_last=True),
}
