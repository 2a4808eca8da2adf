"""Baseline: one level, global average pooling, one linear map to the attributes. B images, C channels, S attributes."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import Level
from mgmrn.model.output import NeededMaps, NetworkOutput


class AttributeNetwork(nn.Module):
    """One level, global average pooling, one linear map to the attributes.

    Args:
        level: level that is pooled.
        channels: C of its map.
        word_vectors: not read; their number says S, and an exported model holds them as one of Mg-MRN does.
    """

    word_vectors: Float[Tensor, "S L"]

    def __init__(self, level: Level, channels: int, word_vectors: Float[Tensor, "S L"]) -> None:
        super().__init__()
        self.level: Level = level
        self.linear = nn.Linear(channels, len(word_vectors))
        self.register_buffer("word_vectors", word_vectors.float().clone())

    def forward(self, maps: Mapping[Level, Float[Tensor, "B C h w"]]) -> NetworkOutput:
        """Attribute vector of the level."""
        return NetworkOutput({self.level: self.linear(maps[self.level].mean(dim=(2, 3)))}, {})

    def forward_level(self, maps: Mapping[Level, Float[Tensor, "B C h w"]], level: Level) -> NetworkOutput:
        """The same: there is one level."""
        assert level == self.level, f"the network has level {self.level} alone"
        output: NetworkOutput = self(maps)
        return output

    def needed_maps(self, level: Level) -> NeededMaps:
        """Its one map."""
        assert level == self.level, f"the network has level {self.level} alone"
        return NeededMaps((level,), (level,))
