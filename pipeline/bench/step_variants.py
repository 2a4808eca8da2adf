"""What `bench step` compares: one training step of each kind of network, on the same drawn batch.

| variant      | mathematics                          | computed                                                          |
|--------------|--------------------------------------|-------------------------------------------------------------------|
| `reference`  | released, three passes a batch       | plainly, as in `tests/reference`; float32                         |
| `sequential` | released, three passes a batch       | ours; the same updates (`tests/golden/test_fast_paths.py`)         |
| `joint`      | released, the summed gradient        | ours, one pass                                                    |
| `default`    | `cub` at the released levels, whole backbone finetuned | ours, one pass                                  |
| `recomputed` | the same                             | ours, blocks of the backbone run again in the backward pass       |
| `slim`       | as `default` at D = 512 (`cub-slim`)      | ours, one pass                                                   |

On a GPU torch computes the convolutions of `reference` with TF32 operands unless it is told otherwise; `reference float32` tells it. Ours
are measured at the precision that they train at, and `joint`, `default` and `slim` compiled too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgmrn.config import ExperimentConfig, MgMRNConfig
from mgmrn.engine import Batch, Trainer, build_trainer, train_epoch
from mgmrn.errors import UserError
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head
from pipeline.bench.reference import reference_module
from pipeline.config.compose import load_experiment

REFERENCE = "reference"
STRICT_REFERENCE = "reference float32"
COMPILED = " compiled"
VARIANTS = (REFERENCE, "sequential", "joint", "default", "recomputed", "slim")
ON_GPU = (STRICT_REFERENCE, *VARIANTS, f"joint{COMPILED}", f"default{COMPILED}", f"slim{COMPILED}")
ATTRIBUTES, WORD_LENGTH, SEEN_CLASSES = 312, 300, 150
"""Of CUB."""
RATE = 1e-9
"""Nearly nothing: a network that nobody trained stays finite over any number of steps on one batch."""
RELEASED_LEVELS = "[c3, c4, c5]"

Step = Callable[[int], None]
"""So many training steps, after which no gradients are kept: the variants of one process share its memory."""


@dataclass(frozen=True)
class StepSize:
    """What a step is made on."""

    images: int
    """Side in pixels."""
    batch: int
    width: int
    """D of the released mathematics; `default` and `slim` have their own."""
    backbone: str


def default_size(device: torch.device) -> StepSize:
    """The paper's on a GPU; half the side and a quarter of the batch on a CPU."""
    return StepSize(448, 16, 2048, "resnet101") if device.type == "cuda" else StepSize(224, 4, 2048, "resnet101")


def make_step(variant: str, size: StepSize, device: torch.device) -> Step:
    """A function that makes training steps of a variant.

    Raises:
        UserError: where the reference is not at hand or has no such backbone.
    """
    match variant:
        case "reference":
            return _plain_step(size, device)
        case "reference float32":
            return _without_tf32(_plain_step(size, device))
        case _:
            return _our_step(variant, size, device)


def config_of(variant: str, size: StepSize) -> ExperimentConfig:
    """The experiment that a variant of ours trains."""
    name = variant.removesuffix(COMPILED)
    common = [
        "model.backbone.weights=none",
        "model.backbone.trainable=all",
        "model.backbone.trainable_stages=[]",
        f"model.backbone.name={size.backbone}",
        f"benchmark.images.size={size.images}",
        f"schedule.compile={str(variant.endswith(COMPILED)).lower()}",
        "schedule.learning_rate=constant",
        f"optimiser.head_lr={RATE}",
        f"optimiser.backbone_lr={RATE}",
    ]
    match name:
        case "sequential" | "joint":
            own = [f"model.width={size.width}", f"model.decoder.attention_width={max(1, size.width // 2)}"]
            return load_experiment("cub-released", [*common, *own, f"schedule.order={name}"]).config
        case "default":
            return load_experiment("cub", [*common, f"model.levels={RELEASED_LEVELS}"]).config
        case "recomputed":
            overrides = [*common, f"model.levels={RELEASED_LEVELS}", "model.backbone.recompute=true"]
            return load_experiment("cub", overrides).config
        case "slim":
            return load_experiment("cub-slim", common).config
        case _:
            raise UserError(f"there is no variant '{variant}'", "--variants", f"choose from {', '.join(ON_GPU)}")


def _our_step(variant: str, size: StepSize, device: torch.device) -> Step:
    trainer, batch = make_training(variant, size, device)

    def step(count: int) -> None:
        train_epoch(trainer, [batch] * count)
        trainer.optimiser.zero_grad(set_to_none=True)

    return step


def make_training(variant: str, size: StepSize, device: torch.device) -> tuple[Trainer, Batch]:
    """A network of ours in training, and the batch that it trains on.

    Raises:
        UserError: for an unknown variant.
    """
    config = config_of(variant, size)
    assert isinstance(config.model, MgMRNConfig)
    images, targets, classes, words = _drawn(size)
    torch.manual_seed(0)
    backbone = build_backbone(config.model.backbone, config.model.levels)
    trainer = build_trainer(
        ImageModel(backbone, build_head(config.model, backbone.channels, words)),
        classes,
        config,
        levels=config.model.levels,
        global_batch=size.batch,
        steps_per_epoch=1,
        device=device,
    )
    return trainer, Batch(images, targets, np.arange(size.batch)).to(device)


def _plain_step(size: StepSize, device: torch.device) -> Step:
    if not size.backbone.startswith("resnet"):
        raise UserError(
            f"the reference has no backbone {size.backbone}", "--backbone", "use a ResNet, or leave the reference out"
        )
    network_code, training = reference_module("released_network"), reference_module("released_training")
    images, targets, classes, words = (x.to(device) for x in _drawn(size))
    torch.manual_seed(0)
    sizes = network_code.Sizes(
        backbone=size.backbone,
        width=size.width,
        attention_width=max(1, size.width // 2),
        attributes=ATTRIBUTES,
        word_length=WORD_LENGTH,
    )
    network = network_code.ReleasedNetwork(sizes, words).to(device).train()
    settings = training.Settings(lr=RATE)
    optimiser = training.make_optimiser(network, settings)

    def step(count: int) -> None:
        for _ in range(count):
            training.sequential_step(network, optimiser, images, targets, classes, settings)
        optimiser.zero_grad(set_to_none=True)

    return step


def _without_tf32(step: Step) -> Step:
    def strict(count: int) -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False):
            step(count)

    return strict


def _drawn(size: StepSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, targets, class attributes and word vectors."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size.batch, 3, size.images, size.images, generator=generator)
    targets = torch.randint(SEEN_CLASSES, (size.batch,), generator=generator)
    classes = torch.rand(SEEN_CLASSES, ATTRIBUTES, generator=generator)
    return images, targets, classes, torch.randn(ATTRIBUTES, WORD_LENGTH, generator=generator)
