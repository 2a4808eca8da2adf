"""Mg-MRN, the Multi-Granularity Mutual Refinement Network (arXiv 2511.08163), top to bottom.

B images, C channels, h w grid, N tokens, D width, S attributes, L word-vector length, U classes.

    image → pyramid → per level l: regions, MgM → F_l: B D h w → MRM: tokens [F_l ; refined] → VSD → v_l: B S
    score of class u = scale · Σ_l cos(v_l, a_u)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import AttributeNetworkConfig, ESZSLConfig, Level, MgMRNConfig, ModelConfig
from mgmrn.model.backbone import Pyramid, build_backbone, halvings
from mgmrn.model.decoder import AttributeDecoder
from mgmrn.model.granularity import GranularityLevel, LevelFeatures, RegionTokens
from mgmrn.model.refinement import MutualRefinement
from mgmrn.model.regions import RegionMining, Regions


@dataclass(frozen=True)
class NetworkOutput:
    """Attribute vectors per level, and the regions of levels that mine them, for the regularisers."""

    attributes: dict[Level, Float[Tensor, "B S"]]
    regions: dict[Level, Regions]


class MgMRN(nn.Module):
    """The network on a pyramid's maps; a zero row of the word vectors is an attribute without a word."""

    word_vectors: Float[Tensor, "S L"]

    def __init__(self, config: MgMRNConfig, channels: Mapping[Level, int], word_vectors: Float[Tensor, "S L"]) -> None:
        super().__init__()
        attributes, length = word_vectors.shape
        steps = {level: halvings(config.backbone.name, level, config.levels[-1]) for level in config.levels}
        levels: dict[str, GranularityLevel] = {
            level: GranularityLevel(channels[level], config.width, steps[level], config.regions, config.granularity)
            for level in config.levels
        }
        self.levels = nn.ModuleDict(levels)
        region_widths = {level: levels[level].region_width for level in config.levels}
        self.refinement = MutualRefinement(config.levels, config.width, config.refinement, region_widths)
        self.decoders = nn.ModuleDict(
            {level: AttributeDecoder(config.width, attributes, length, config.decoder) for level in config.levels}
        )
        words = word_vectors.float()
        words = F.normalize(words, dim=1) if config.decoder.word_vectors == "unit" else words.clone()
        self.register_buffer("word_vectors", words)
        self._levels = config.levels
        self.apply(init_weights)

    def forward(self, maps: Mapping[Level, Float[Tensor, "B C h w"]]) -> NetworkOutput:
        outputs: dict[Level, LevelFeatures] = {level: self.levels[level](maps[level]) for level in self._levels}
        attributes = {level: self._decode(level, outputs) for level in self._levels}
        return NetworkOutput(attributes, {level: x.regions for level, x in outputs.items() if x.regions is not None})

    def forward_level(self, maps: Mapping[Level, Float[Tensor, "B C h w"]], level: Level) -> NetworkOutput:
        """Output of one level from `needed_maps(level)`, with no more computation than its loss needs (`sequential`)."""
        outputs = self.outputs(maps, level)
        regions = outputs[level].regions
        return NetworkOutput({level: self._decode(level, outputs)}, {} if regions is None else {level: regions})

    def needed_maps(self, level: Level) -> tuple[tuple[Level, ...], Level]:
        """Maps that `forward_level` reads, finest first, and the deepest through which the level's loss has a gradient."""
        values = tuple(sorted((level, *self.refinement.sources(level))))
        return values, level if self.refinement.detach else values[-1]

    def outputs(self, maps: Mapping[Level, Float[Tensor, "B C h w"]], level: Level) -> dict[Level, LevelFeatures]:
        """Outputs of a level and of those that refine it, with `detach` without gradients."""
        outputs: dict[Level, LevelFeatures] = {level: self.levels[level](maps[level])}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.refinement.detach):
            for source in self.refinement.sources(level):
                outputs[source] = self.levels[source](maps[source])
        return outputs

    def tokens(self, level: Level, outputs: Mapping[Level, LevelFeatures]) -> Float[Tensor, "B N D"]:
        """Tokens of a level's decoder: own pixels, then refined ones, then regions."""
        tokens: Tensor = self.refinement(level, outputs)
        regions = outputs[level].region_tokens
        return tokens if regions is None else torch.cat([tokens, regions], dim=1)

    def _decode(self, level: Level, outputs: Mapping[Level, LevelFeatures]) -> Float[Tensor, "B S"]:
        return self.decoders[level](self.tokens(level, outputs), self.word_vectors)


class AttributeNetwork(nn.Module):
    """Baseline on a pyramid's maps: one level, global average pooling, one linear map to the attributes."""

    word_vectors: Float[Tensor, "S L"]
    """Not used, but stored as in Mg-MRN: exported models are built from it."""

    def __init__(self, level: Level, channels: int, word_vectors: Float[Tensor, "S L"]) -> None:
        super().__init__()
        self.level: Level = level
        self.linear = nn.Linear(channels, len(word_vectors))
        self.register_buffer("word_vectors", word_vectors.float().clone())

    def forward(self, maps: Mapping[Level, Float[Tensor, "B C h w"]]) -> NetworkOutput:
        return NetworkOutput({self.level: self.linear(maps[self.level].mean(dim=(2, 3)))}, {})

    def forward_level(self, maps: Mapping[Level, Float[Tensor, "B C h w"]], level: Level) -> NetworkOutput:
        assert level == self.level, f"the network has level {self.level} alone"
        return self(maps)

    def needed_maps(self, level: Level) -> tuple[tuple[Level, ...], Level]:
        return (level,), level


class ImageModel(nn.Module):
    """Backbone and head: images to attribute vectors."""

    def __init__(self, backbone: Pyramid, head: MgMRN | AttributeNetwork) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> NetworkOutput:
        return self.head(self.backbone(images))

    def forward_level(self, images: Float[Tensor, "B 3 H W"], level: Level) -> NetworkOutput:
        """Output of one level; stages that it does not need are not run."""
        needed, deepest = self.head.needed_maps(level)
        return self.head.forward_level(self.backbone(images, needed, gradient_to=deepest), level)


def init_weights(module: nn.Module) -> None:
    """Initial distributions of all parameters, for `Module.apply`.

    Convolutions and linear maps: uniform within ±1/√fan-in (σ = 1/√(3 fan-in)), so that attention starts soft; biases
    zero, norms one and zero. Attribute vectors: normal with variance 1/D. Region centres: normal, hence uniform
    directions on the sphere. Scatter of region descriptors: normal with variance 1/R, beside features of order 1; zero
    would leave the centres without a gradient. Region tokens: normal, σ = 1, since descriptors are unit vectors.
    """
    match module:
        case nn.Conv2d() | nn.Linear():
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case AttributeDecoder():
            nn.init.normal_(module.attributes, std=module.attributes.shape[1] ** -0.5)
        case RegionTokens():
            nn.init.normal_(module.linear.weight)
        case RegionMining():
            nn.init.normal_(module.centres)
            if module.scatter is not None:
                nn.init.normal_(module.scatter.weight, std=module.width**-0.5)


def class_scores(
    attributes: Mapping[Level, Float[Tensor, "B S"]], class_attributes: Float[Tensor, "U S"], scale: float
) -> Float[Tensor, "B U"]:
    """`scale · Σ_l cos(v_l, a_u)`, float32."""
    with torch.autocast(class_attributes.device.type, enabled=False):
        classes = F.normalize(class_attributes.float(), dim=1)
        return scale * summed_directions(attributes) @ classes.mT


def summed_directions(attributes: Mapping[Level, Float[Tensor, "B S"]]) -> Float[Tensor, "B S"]:
    """`Σ_l v_l / |v_l|`, float32, on which the scores depend."""
    return torch.stack([F.normalize(v.float(), dim=1) for v in attributes.values()]).sum(dim=0)


def levels_of(config: ModelConfig) -> tuple[Level, ...]:
    """Levels of the pyramid that a model reads, finest first."""
    return config.levels if isinstance(config, MgMRNConfig) else (config.level,)


def build_model(config: ModelConfig, word_vectors: Float[Tensor, "S L"]) -> ImageModel:
    """Backbone and head of a config; raises as `build_backbone` and `build_head` do."""
    backbone = build_backbone(config.backbone, levels_of(config))
    return ImageModel(backbone, build_head(config, backbone.channels, word_vectors))


def build_head(
    config: ModelConfig, channels: Mapping[Level, int], word_vectors: Float[Tensor, "S L"]
) -> MgMRN | AttributeNetwork:
    """The trainable part of a config's network. Raises TypeError for ESZSL, which has no trainable part."""
    match config:
        case MgMRNConfig():
            return MgMRN(config, channels, word_vectors)
        case AttributeNetworkConfig():
            return AttributeNetwork(config.level, channels[config.level], word_vectors).apply(init_weights)
        case ESZSLConfig():
            raise TypeError("ESZSL is solved in closed form; see mgmrn.eszsl")
