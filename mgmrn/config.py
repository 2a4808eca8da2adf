"""The science of an experiment as frozen values: data, network, loss, training.

Every field takes part in an experiment's identity; workers, devices, paths and tracking have no place here. Equations
and symbols are those of the paper (arXiv 2511.08163).
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from mgmrn.trunks import TIMM, TRUNKS

SCHEMA_VERSION = 2
"""Version of the fields' meaning, part of every config hash; a change of meaning raises it."""

Level = Literal["c2", "c3", "c4", "c5"]
LEVELS: tuple[Level, ...] = ("c2", "c3", "c4", "c5")
"""Stages of the pyramid, finest first: strides 4, 8, 16, 32; of a trunk with one grid: quarters of its blocks."""


def _known_backbone(name: str) -> str:
    """The name of a torchvision trunk, or one of timm's form; whether timm has it is known where a config is composed."""
    short = name.removeprefix(TIMM)
    if name in TRUNKS or (name.startswith(TIMM) and short.isidentifier()):
        return name
    if "." in short:
        short, _, tag = short.partition(".")
        raise ValueError(f"the tag of timm's weights is a field of its own: set name {TIMM}{short} and weights {tag}")
    close = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(name, TRUNKS, n=1))
    raise ValueError(f"must be {TIMM}NAME or one of {', '.join(TRUNKS)}, got '{name}'{close}")


_NAMES = {"anyOf": [{"enum": list(TRUNKS)}, {"type": "string", "pattern": f"^{TIMM}"}]}
BackboneName = Annotated[str, AfterValidator(_known_backbone), WithJsonSchema(_NAMES)]

# Bounds keep values within float32, within what torch and numpy take as a seed, and file names short.
Weight = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Exponent = Annotated[float, Field(ge=-30, le=30)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Several = Annotated[int, Field(ge=2, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
FileName = Annotated[str, Field(min_length=1, max_length=100)]


class Frozen(BaseModel):
    """Immutable model; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageConfig(Frozen):
    """Transform of a picture; training and test use one scale."""

    size: Annotated[int, Field(ge=32, le=2048)] = 448
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    resize: Literal["squash", "crop"] = "crop"
    """`crop`: shorter side to size·8/7, then a size×size crop; `squash`: both sides to size."""
    flip: bool = True
    """Random horizontal flip in training; cached features then hold a second copy of every map."""
    min_crop_area: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    """Smallest area of a random resized crop in training; 1 turns it off (the only value cached features allow)."""
    colour_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random brightness, contrast and saturation in training; 0 turns it off."""


class BenchmarkConfig(Frozen):
    """A data set in the xlsa17 layout, and its tuning split."""

    name: Annotated[FileName, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    """Folder under `xlsa17/data/`, and folder of the pictures under the data root."""
    word_vectors: FileName | None = None
    """Stem of `w2v/<stem>_attribute.pkl`; default: the data set's name."""
    images: ImageConfig = ImageConfig()
    tune_seen_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each train class held out as pseudo-seen test images on the `tune` split."""
    tune_split_seed: Seed = 0
    """Seed of that share, apart from the run's seed: runs of several seeds share their evaluation images."""


class BackboneConfig(Frozen):
    """A pyramid of torchvision or timm (paper, section on multi-granularity features)."""

    name: BackboneName = "resnet101"
    """A trunk of torchvision, or `timm/NAME`, which sets size, mean and std of `benchmark.images` that the config leaves out."""
    weights: Annotated[str, Field(min_length=1)] = "DEFAULT"
    """Name of torchvision weights (`DEFAULT`, `IMAGENET1K_V2`), timm's tag (`a1_in1k`), path to a state dict (`.pth`,
    `.safetensors` of timm's hub), or `none`."""
    trainable: Literal["none", "stages", "all"] = "none"
    trainable_stages: tuple[Level, ...] = ()
    """Finetuned stages with `trainable: stages`."""
    batch_norm: Literal["frozen", "train", "sync"] = "frozen"
    """`frozen`: running statistics without updates; `train`: per-worker batches; `sync`: batches over all workers."""
    recompute: bool = False
    """Activation checkpointing of finetuned blocks: same gradients, less memory, a third more time in the backbone."""

    @model_validator(mode="after")
    def _trains_what_it_names(self) -> BackboneConfig:
        if (self.trainable == "stages") != bool(self.trainable_stages):
            raise ValueError("trainable_stages must name stages exactly when trainable is 'stages'")
        if self.trainable == "none" and self.batch_norm != "frozen":
            raise ValueError("batch_norm must be 'frozen' when the backbone is not trainable")
        if self.recompute and self.trainable == "none":
            raise ValueError("recompute saves nothing in a frozen backbone: leave it out, or finetune (trainable)")
        if self.recompute and self.batch_norm != "frozen":
            raise ValueError(
                "recompute would count each batch twice in the statistics of batch_norm: set it to 'frozen'"
            )
        return self


class RegionConfig(Frozen):
    """Region mining (grouping; Huang & Li, CVPR 2020, arXiv 2005.10411)."""

    mode: Literal["none", "released", "regions", "tokens"] = "regions"
    count: Annotated[int, Field(ge=2, le=64)] = 5
    """K, the number of region centres."""
    reduced_width: Annotated[int, Field(ge=8, le=1024)] = 256
    """Channels of the space in which pixels are grouped; a level with fewer channels keeps them."""


class GranularityConfig(Frozen):
    """MgM: maps of a level to the common width and the coarsest grid."""

    reduce: Literal["before", "strided", "after"] = "strided"
    """Halve the grid `before` each 3×3 convolution; `after` it, as released (4× the multiply-adds); or by the
    convolution's stride (`strided`)."""
    stem: Literal["project", "none"] = "project"
    """`project`: 1×1 convolution to the common width D; `none`: the stage's own channels, as released."""
    group_norm_groups: Count = 32


class RefinementConfig(Frozen):
    """MRM: refinement of a level by the others."""

    topology: Literal["none", "cascade", "adjacent", "regions"] = "adjacent"
    """`cascade`: by all deeper levels, as released; `adjacent`: by both neighbours, as the abstract says; `regions`: by the
    region features of both neighbours, through a residual that starts at zero."""
    detach: bool = True
    """Whether the neighbours' features are constants for the level that they refine."""
    channel_reduction: Count = 16
    """Ratio of the channel gate's bottleneck."""


class DecoderConfig(Frozen):
    """VSD: attribute attention from word vectors."""

    attention_width: Annotated[int, Field(ge=1, le=8192)] = 1024
    """M, the width of queries, keys and values."""
    word_vectors: Literal["unit", "raw"] = "unit"
    """`unit`: scaled to unit length; `raw`: unchanged, as released."""
    temperature: Literal["none", "sqrt", "learned"] = "none"
    """Divisor of the attention logits: none (as released), sqrt(M), or a learned positive number."""


class MgMRNConfig(Frozen):
    """The Multi-Granularity Mutual Refinement Network (arXiv 2511.08163)."""

    kind: Literal["mgmrn"] = "mgmrn"
    backbone: BackboneConfig = BackboneConfig()
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=4)] = ("c3", "c4", "c5")
    width: Annotated[int, Field(ge=8, le=8192)] = 2048
    """D, the common width of all levels."""
    regions: RegionConfig = RegionConfig()
    granularity: GranularityConfig = GranularityConfig()
    refinement: RefinementConfig = RefinementConfig()
    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _levels_and_widths_fit(self) -> MgMRNConfig:
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must be distinct and finest first, got {list(self.levels)}")
        if self.width % self.granularity.group_norm_groups:
            groups = self.granularity.group_norm_groups
            raise ValueError(f"width {self.width} must be a multiple of granularity.group_norm_groups {groups}")
        if self.refinement.topology == "regions" and self.regions.mode not in ("regions", "tokens"):
            raise ValueError(
                "refinement.topology 'regions' exchanges mined regions: set regions.mode to 'regions' or 'tokens'"
            )
        return self


class AttributeNetworkConfig(Frozen):
    """Baseline: one level, global average pooling, one linear map to the attributes, cosine score."""

    kind: Literal["attribute_network"] = "attribute_network"
    backbone: BackboneConfig = BackboneConfig()
    level: Level = "c5"


class ESZSLConfig(Frozen):
    """Baseline: ESZSL in closed form on pooled features (Romera-Paredes & Torr, ICML 2015)."""

    kind: Literal["eszsl"] = "eszsl"
    backbone: BackboneConfig = BackboneConfig()
    level: Level = "c5"
    log10_gamma: Annotated[tuple[Exponent, ...], Field(min_length=1)] = (-3, -2, -1, 0, 1, 2, 3)
    """Grid of the feature regulariser; chosen on the `tune` split."""
    log10_lambda: Annotated[tuple[Exponent, ...], Field(min_length=1)] = (-3, -2, -1, 0, 1, 2, 3)
    """Grid of the attribute regulariser; chosen on the `tune` split."""


ModelConfig = Annotated[MgMRNConfig | AttributeNetworkConfig | ESZSLConfig, Field(discriminator="kind")]


AgreementTeacher = Literal["even", "reliable"]


def _other_than_one(weights: dict[Level, Weight]) -> dict[Level, Weight]:
    return {level: weight for level, weight in weights.items() if weight != 1}


class LossConfig(Frozen):
    """Per level: cross-entropy over seen classes + weighted regularisers (paper, loss equations)."""

    scale: Positive = 20.0
    """Factor of the cosine before the softmax."""
    regression: Weight = 0.1
    """λ_reg, weight of the attribute regression."""
    regression_reduction: Literal["sum", "mean"] = "sum"
    """Reduction over the S attributes; `mean` as released, and inert."""
    occupancy: Weight = 0.0
    """λ_occupancy, weight of the Beta prior on region occupancy."""
    decorrelation: Weight = 0.0
    """λ_decorrelation, weight of the off-diagonal cos² of the region features."""
    agreement: Weight = 0.0
    """λ_agreement, weight of mutual agreement: each level learns from what its neighbours predict for the same image."""
    agreement_teacher: AgreementTeacher = "even"
    """Weights of the neighbours: `even`, or by the probability that each gives to the right class (`reliable`)."""
    label_smoothing: Probability = 0.0
    level_weights: Annotated[dict[Level, Weight], AfterValidator(_other_than_one)] = {}
    """Weight of a level's loss; default 1, which is left out, so that it changes no identity."""


class OptimiserConfig(Frozen):
    """Optimiser, parameter groups and clipping."""

    name: Literal["sgd", "adamw"] = "adamw"
    head_lr: Positive = 5e-4
    backbone_lr: Positive = 5e-5
    weight_decay: Weight = 1e-4
    """Not applied to norms, biases and single vectors."""
    momentum: Probability = 0.9
    """SGD's momentum; AdamW's β₁."""
    clip_norm: Positive | None = None
    """Largest gradient norm; none: no clipping."""
    accumulate: Count = 1
    """Micro-batches into which a batch is divided; their gradients are summed for one step."""


Compile = bool | Literal["auto", "graphs"]


class ScheduleConfig(Frozen):
    """Length, order, learning rate and precision of training."""

    epochs: Count = 30
    order: Literal["joint", "sequential"] = "joint"
    """`joint`: one pass and step for all levels; `sequential`: one per level, finest first, as released."""
    learning_rate: Literal["constant", "step", "cosine", "one-cycle"] = "one-cycle"
    step_epochs: Count = 10
    """`step`: epochs between two drops."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`step`: factor of a drop."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`one-cycle`: share of the steps in which the rate rises."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on GPUs that compute it natively, float32 elsewhere; `bfloat16`: autocast on any device, CPUs
    included. Norms, the softmax of regions and losses stay float32."""
    compile: Compile = False
    """`true`: torch.compile, on a GPU with CUDA graphs; `graphs`: CUDA graphs alone, of heads on cached features;
    `auto`: on a GPU, whichever of these or none takes the least time for the steps that are left."""


class PlainSampling(Frozen):
    """Every training image once an epoch, shuffled; the last incomplete batch is dropped."""

    kind: Literal["plain"] = "plain"
    batch: Several = 64
    """Images of a global batch, over all workers."""


class EpisodicSampling(Frozen):
    """Episodes of `ways` seen classes × `shots` images, as released."""

    kind: Literal["episodic"] = "episodic"
    ways: Several = 8
    shots: Count = 2
    episodes: Count = 300
    """Episodes in an epoch."""


SamplingConfig = Annotated[PlainSampling | EpisodicSampling, Field(discriminator="kind")]


class ExperimentConfig(Frozen):
    """One experiment: benchmark, network, loss, training."""

    benchmark: BenchmarkConfig
    model: ModelConfig = MgMRNConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = PlainSampling()
    cache_features: bool = False
    """Compute a frozen backbone's maps once and train on them."""
    mirror_scores: bool = False
    """Average the scores of an image with those of its mirror image, in evaluations and predictions."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> ExperimentConfig:
        deepest = self.model.levels[-1] if isinstance(self.model, MgMRNConfig) else self.model.level
        if behind := [stage for stage in self.model.backbone.trainable_stages if stage > deepest]:
            raise ValueError(
                f"model.backbone.trainable_stages names {behind[0]}, which lies behind the deepest level, {deepest}"
            )
        if self.loss.agreement and self.schedule.order == "sequential":
            raise ValueError(
                "loss.agreement compares levels of one pass: set schedule.order to 'joint', or agreement to 0"
            )
        if self.mirror_scores and isinstance(self.model, ESZSLConfig):
            raise ValueError("mirror_scores is not offered with ESZSL, which scores pooled features: leave it out")
        if self.cache_features and self.model.backbone.trainable != "none":
            raise ValueError("cache_features needs a frozen backbone (model.backbone.trainable: none)")
        if self.schedule.compile == "graphs" and not self.cache_features:
            raise ValueError(
                "schedule.compile 'graphs' is for heads on cached maps: set cache_features, or compile to true or auto"
            )
        images = self.benchmark.images
        if self.cache_features and (images.min_crop_area < 1 or images.colour_jitter > 0):
            raise ValueError("cache_features allows no random crops or colours (min_crop_area: 1, colour_jitter: 0)")
        return self
