"""Baseline: one level, global average pooling, one linear map to the attributes. B images, C channels, S attributes."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import Level
from mgmrn.model.output import NeededMaps, NetworkOutput


class AttributeNetwork(nn.Module):
    """The network on a pyramid's maps; stores word vectors, as Mg-MRN does, for exported models."""

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
        """Output of the one level."""
        assert level == self.level, f"the network has level {self.level} alone"
        return self(maps)

    def needed_maps(self, level: Level) -> NeededMaps:
        """The map of the one level."""
        return NeededMaps((level,), (level,))
