"""The staged trunk gives what torchvision's own feature extraction gives at the same nodes, at strides 4 to 32."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from mgmrn.config import LEVELS
from mgmrn.model.backbone import CHANNELS, Pyramid

NODES = {
    "resnet": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v2": ("features.3", "features.6", "features.13", "features.18"),
    "convnext_tiny": ("features.1", "features.3", "features.5", "features.7"),
    "swin_t": ("features.1", "features.3", "features.5", "features.7"),
}


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "convnext_tiny", "swin_t"]
)
def test_maps_equal_torchvisions_at_the_same_nodes(name: str) -> None:
    torch.manual_seed(0)
    trunk = get_model(name, weights=None).eval()
    nodes = NODES["resnet" if name.startswith("resnet") else name]
    extractor = create_feature_extractor(trunk, dict(zip(nodes, LEVELS, strict=True)))
    images = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        expected = extractor(images)
        found = Pyramid(name, trunk, LEVELS).eval()(images)  # type: ignore[arg-type]
    for i, level in enumerate(LEVELS):
        assert found[level].shape == (1, CHANNELS[name][i], 32 // 2 ** (i + 2), 64 // 2 ** (i + 2))  # type: ignore[index]
        wanted = expected[level].permute(0, 3, 1, 2) if name == "swin_t" else expected[level]
        torch.testing.assert_close(found[level], wanted, rtol=0, atol=0)
